"""What the status page weighs, and when a browser has all of it. Needs Chromium, not root."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Benchmark, Figure
from standfast.demo.consul.server import EmbeddedConsul
from standfast.system.clock import utc_now
from tests.support.browser import Browser, headless
from tests.support.consul_clusters import free_ports
from tests.support.exporter import AnsweringAgent, serving_pages
from tests.support.status_documents import keys, served
from tests.support.storage_node import StorageNode

# Milliseconds until the page and all that it asks for is there, the status last, and until its
# first file is; kilobytes of all of it.
LOADED = """
const [page] = performance.getEntriesByType('navigation');
const all = [page, ...performance.getEntriesByType('resource')];
return [Math.max(...all.map(one => one.responseEnd)), page.responseEnd,
        all.reduce((sum, one) => sum + one.encodedBodySize, 0) / 1000];
"""


@dataclass(frozen=True)
class Window:
    """A browser, and where the page is."""

    browser: Browser
    url: str


@contextmanager
def window() -> Iterator[Window]:
    """The page of the primary of three nodes, served by the real exporter."""
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedConsul(no_leader_after_s=0.2) as consul,
        headless(Path(directory)) as browser,
    ):
        for name in ("n1", "n2", "n3"):
            consul.add_agent(name)
        node = StorageNode(Path(directory), consul.address("n1"), free_ports(1)[0])
        config = node.configure(lease={"request_timeout": 1.0})
        agent = AnsweringAgent(config.run_dir / "agent.sock")
        agent.says({**served(), "since": utc_now() - 60})
        for key, value in keys(utc_now()).items():
            node.gateway.put(config.key(key), value)
        with serving_pages(node.environment(), Path(directory) / "exporter.log") as exporter:
            yield Window(browser, exporter.url)
        agent.says(None)


def loading(place: Window, rounds: int) -> Sequence[Figure]:
    """The first, which warms up, is left out; each time the browser has to fetch everything."""
    whole_ms, alone_ms, sizes_kb = [], [], []
    place.browser.devtools("Network.setCacheDisabled", cacheDisabled=True)
    for _ in range(rounds + 1):
        place.browser.open(place.url)
        place.browser.wait(lambda: "WELL" in place.browser.text(".headline"))
        whole, alone, size = place.browser.run(LOADED)
        whole_ms.append(whole)
        alone_ms.append(alone)
        sizes_kb.append(size)
    files = {"the page's first file": alone_ms[1:]}
    return [
        Figure("until the browser has all of it", "ms", whole_ms[1:], baselines=files),
        Figure("size of all of it", "kB", sizes_kb[1:]),
    ]


def why_not() -> str | None:
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install chromium chromium-driver"
    return None


BENCHMARKS = (
    Benchmark(
        "page",
        "The status page in headless Chromium on the same machine, nothing cached.",
        on=window,
        measure=loading,
        rounds=10,
        quick=3,
        seconds=(5, 0.5),
        why_not=why_not,
    ),
)
