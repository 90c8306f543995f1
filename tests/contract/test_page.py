"""The status page in a real browser, served by the real exporter, whose agent is a test's: what it
shows, and that it stays right while what it shows changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import ClientRecord
from standfast.demo.consul.server import EmbeddedConsul
from standfast.demo.story import Times, first_lines, first_promotion
from standfast.exporter.status_cache import KEEP_S
from standfast.system.clock import monotonic, utc_now
from tests.contract.demo_scene import keep_pace, quiet_cluster
from tests.support.browser import Browser, headless
from tests.support.consul_clusters import free_ports
from tests.support.exporter import AnsweringAgent, Exporter, behind_a_password, serving_pages
from tests.support.figures import note
from tests.support.pace import patient
from tests.support.status_documents import blind, clients, dead, keys, served, standby
from tests.support.storage_node import StorageNode

MOST_BYTES = 100_000
# A look, the time that it is kept, and the page's own round.
TURN_S = 90.0
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@dataclass
class Scene:
    """The exporter of n1, its agent and its Consul."""

    agent: AnsweringAgent
    consul: EmbeddedConsul
    gateway: ConsulGateway
    key: str
    client_key: str
    url: str
    exporter: Exporter

    def put_keys(self) -> None:
        for name, value in keys(utc_now()).items():
            self.gateway.put(self.key + name, value)
        for name, value in clients(utc_now()).items():
            self.gateway.put(self.client_key + name, value)

    def fetch(self, path: str = "api/v1/status") -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=patient(20.0)) as answer:
            body: bytes = answer.read()
            return body


def fresh(doc: Mapping[str, Any]) -> dict[str, Any]:
    """A picture with the times of now."""
    return {**doc, "since": utc_now() - 60} if "since" in doc else dict(doc)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with headless(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with EmbeddedConsul(no_leader_after_s=0.2) as consul:
        for name in ("n1", "n2", "n3"):
            consul.add_agent(name)
        node = StorageNode(tmp_path, consul.address("n1"), free_ports(1)[0])
        config = node.configure(lease={"request_timeout": 1.0})
        agent = AnsweringAgent(config.run_dir / "agent.sock")
        agent.says(fresh(served()))
        gateway = ConsulGateway([consul.address("n1")], timeout_s=5)
        with serving_pages(node.environment(), tmp_path / "exporter.log") as exporter:
            names = (config.key(""), config.client_key(""))
            scene = Scene(agent, consul, gateway, *names, exporter.url, exporter)
            scene.put_keys()
            yield scene
        agent.says(None)


def headline(browser: Browser) -> str:
    return browser.text(".headline")


def shows(browser: Browser, *texts: str, hurry: bool = True) -> None:
    """Until the first line has these; nothing is reloaded. Without `hurry` by the page's own
    rounds, else it is made to ask at once."""

    def there() -> bool:
        if hurry:
            browser.run("poll()")
        return all(text in headline(browser) for text in texts)

    browser.wait(there, TURN_S)


def width(browser: Browser) -> int:
    return int(browser.run("return document.documentElement.scrollWidth"))


def keep_shot(browser: Browser, name: str) -> None:
    """For people to look at, where STANDFAST_SHOTS names a directory."""
    directory = os.environ.get("STANDFAST_SHOTS")
    if directory:
        browser.screenshot(Path(directory) / f"{name}.png")


def test_the_page_stays_right_while_what_it_shows_changes(browser: Browser, scene: Scene) -> None:
    browser.size(1200, 900)
    browser.dark(False)
    browser.open(scene.url)
    shows(browser, "WELL", "n1 serves data-services since", "(epoch 7). A failover would lose 4 s.")
    assert browser.run("return document.title") == "✓ n1 · data-services"
    page = browser.text("main")
    for text in ("takeover, lost 3 s", "6.8 s of 8 s left", "yes, by itself", "clean-handover"):
        assert text in page, text
    assert "web-1" in browser.text("[aria-label=Clients]")
    assert "mount-current" in browser.text("[aria-label=Clients]")
    keep_shot(browser, "healthy")
    browser.run(
        "window.same = document.querySelector('.headline');"
        "getSelection().selectAllChildren(document.querySelector('[aria-label=History] h3'))"
    )

    late = [standby("n2", 700.0), standby("n3", None)]
    no = {"possible": False, "reason": "too-old", "sentence": "the newest snapshot is 700 s old"}
    scene.agent.says(fresh(served(failover=no, standbys=late)))
    shows(
        browser,
        "WARNING",
        "No failover is possible now.",
        "the newest snapshot is 700 s old",
        hurry=False,
    )
    assert "too-old" in browser.text("main") and "too old" in browser.text(".standbys")
    assert "n3 has no complete snapshot" in browser.text(".notices")
    keep_shot(browser, "no-failover")

    scene.agent.says(fresh(dead("n1")))
    shows(browser, "ALARM", "Nobody serves data-services", "14 s ago", "takes over by itself")
    assert browser.run("return document.title") == "✕ NOBODY · data-services"
    assert "Nobody serves" in browser.run("return byId('announce').textContent")
    keep_shot(browser, "dead")

    scene.agent.says(fresh(served("n2", "n1", epoch=8)))
    shows(browser, "n2 serves data-services since", "(epoch 8)")
    scene.gateway.put(
        scene.client_key + "web-1",
        ClientRecord("web-1", "n2", 8, "mount-current", utc_now()).dump(),
    )
    browser.wait(lambda: "1 of 2 clients are not well on n2: web-2" in browser.text(".notices"))
    assert "known on n2 only" in browser.text("main")
    # Nothing was built anew: what a person has selected stays.
    assert browser.run("return window.same === document.querySelector('.headline')")
    assert browser.run("return getSelection().toString()") == "History"

    scene.consul.set_quorum(False)
    scene.agent.says(blind("n1", lease_remaining_s=None, role="standby"))
    shows(
        browser,
        "UNKNOWN",
        "It is not known who serves data-services",
        "Bring back a majority",
    )
    assert browser.text("[aria-label=History]").split() == ["History", "not", "known"]
    assert browser.text("[aria-label=Clients]").split() == ["Clients", "not", "known"]
    keep_shot(browser, "blind")

    scene.agent.says(None)
    shows(browser, "UNKNOWN", "It is not known who serves data-services")
    browser.wait(lambda: "agent" in browser.text("[aria-label^='This node']"))
    scene.consul.set_quorum(True)
    shows(browser, "data-services", "epoch 7")  # by Consul alone
    assert "none answers on this node" in browser.text(".notices")

    scene.agent.says(fresh(served()))
    shows(browser, "WELL", "n1 serves")
    scene.exporter.process.kill()
    later = "const real = performance.now.bind(performance); performance.now = () => real() + 8000;"
    browser.run(later)
    browser.wait(lambda: "No answer since" in browser.text("#stale"))
    shows(browser, "?", "WAS SO AT", "n1 serves")
    assert browser.run("return document.title").startswith("? no answer")
    assert browser.run("return getComputedStyle(document.querySelector('main')).filter") != "none"
    keep_shot(browser, "stale")


def test_names_with_markup_are_shown_and_never_run(browser: Browser, scene: Scene) -> None:
    browser.size(1200, 900)
    gone = {"possible": False, "reason": HOSTILE, "sentence": HOSTILE}
    decision = {"action": "wait", "reason": HOSTILE, "sentence": HOSTILE}
    job = {"job": HOSTILE, "source": HOSTILE, "target": HOSTILE, "down_s": None, "why": HOSTILE}
    nomad = {"reason": HOSTILE, "sentence": HOSTILE, "failed": [HOSTILE], "jobs": [job]}
    doc = served(
        HOSTILE, "n1", failover=gone, decision=decision, trouble=HOSTILE, sick=HOSTILE,
        busy=HOSTILE, began_by=HOSTILE, role=HOSTILE, aside=[HOSTILE], lease_trouble=HOSTILE,
        nomad={**nomad, "settled": False, "done": [], "at": None, "role": HOSTILE},
        standbys=[standby(HOSTILE, 4.0, snapshot=HOSTILE)],
        paused={"by": HOSTILE, "reason": HOSTILE, "at": 0},
    )  # fmt: skip
    scene.agent.says(fresh(doc))
    record = ClientRecord("web-9", HOSTILE, 7, HOSTILE, utc_now())
    scene.gateway.put(scene.client_key + "web-9", record.dump())
    scene.gateway.put(scene.key + "history/9", HOSTILE.encode())
    browser.open(scene.url)
    shows(browser, HOSTILE)
    browser.wait(lambda: browser.text("[aria-label=Clients]").count(HOSTILE) == 2)
    assert browser.text("body").count(HOSTILE) > 20
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0
    # The policy would stop what the page let through; it was not needed.
    assert "owned" not in browser.run("return document.title").replace(HOSTILE, "")
    with urllib.request.urlopen(scene.url, timeout=20) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy
    browser.size(360, 740, phone=True)
    assert width(browser) == 360
    keep_shot(browser, "hostile")


def test_the_page_is_small_quick_dark_and_fits_a_phone(browser: Browser, scene: Scene) -> None:
    many = [standby(f"standby-with-a-long-name-{number}.example.net", 4.0) for number in range(10)]
    scene.agent.says(fresh(served(standbys=many)))
    browser.size(1200, 900)
    browser.open(scene.url)
    shows(browser, "n1 serves")
    times = []
    for _ in range(3):
        browser.open(scene.url)
        shows(browser, "n1 serves")
        times.append(
            browser.run(
                "const [page] = performance.getEntriesByType('navigation');"
                "const all = performance.getEntriesByType('resource');"
                "return [Math.max(page.loadEventEnd, ...all.slice(0, 4).map(o => o.responseEnd)),"
                " page.transferSize + all.slice(0, 5).reduce((sum, o) => sum + o.transferSize, 0),"
                " all.map(o => new URL(o.name).pathname)]"
            )
        )
    load_ms, size, names = min(times)
    note(f"the status page: loaded in {load_ms:.0f} ms, {size} bytes in all, {names}")
    assert 0 < size < MOST_BYTES
    assert set(names) == {"/page.css", "/page.js", "/icon.svg", "/api/v1/status"}

    def ground() -> str:
        return str(browser.run("return getComputedStyle(document.body).backgroundColor"))

    plotted = browser.run(
        "const trend = {step_s: 30, ages_s: [10, 20, null, 30, 40]};"
        "const [plotted, ends] = plot({trend}, {interval_s: 300, max_data_loss_s: 25});"
        "return [plotted.querySelector('.curve').getAttribute('d').split('M').length - 1,"
        " plotted.querySelectorAll('.limit').length, plotted.getAttribute('aria-label'),"
        " ends.textContent]"
    )
    assert plotted == [
        *(2, 1),  # a gap stays one
        "Age in the last 3 min: between 10 s and 40 s",
        "1 h agohighest 40 snow",
    ]

    light = ground()
    browser.dark(True)
    browser.wait(lambda: ground() != light)
    keep_shot(browser, "dark")
    for wide in (360, 768, 1200):
        browser.size(wide, 740, phone=wide == 360)
        assert width(browser) == wide
    browser.size(360, 740, phone=True)
    keep_shot(browser, "phone")
    browser.dark(False)
    assert browser.run(
        "return [document.documentElement.lang, document.querySelectorAll('h1').length,"
        " document.querySelectorAll('main').length,"
        " [...document.querySelectorAll('svg.plot')].every(o => o.getAttribute('aria-label'))]"
    ) == ["en", 1, 1, True]


def test_the_page_works_behind_a_password_that_stands_in_its_address(
    browser: Browser, tmp_path: Path
) -> None:
    node = StorageNode(tmp_path, "127.0.0.1:1", free_ports(1)[0])
    node.configure()
    with (
        serving_pages(node.environment(), tmp_path / "exporter.log") as exporter,
        behind_a_password(exporter.url, "ann", "secret") as proxy,
    ):
        browser.open(proxy.replace("//", "//ann:secret@"))
        shows(browser, "UNKNOWN", "connection refused")


def test_ten_open_pages_cost_a_look_a_second_at_most(scene: Scene) -> None:
    started, before = monotonic(), scene.agent.asked
    bodies: list[bytes] = []
    threads = [threading.Thread(target=lambda: bodies.append(scene.fetch())) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patient(30.0))
    assert len(bodies) == 10
    assert all(json.loads(body)["volumes"][0]["serving"] == "n1" for body in bodies)
    assert scene.agent.asked - before <= 1 + (monotonic() - started) / KEEP_S


def test_an_open_page_follows_a_power_cut_of_the_primary(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With agents, leases, replication and a takeover that are real."""
    monkeypatch.setattr("tempfile.tempdir", "/tmp")  # a socket's path has to be short
    keep_pace(monkeypatch)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(quiet_cluster())
        first_promotion(cluster, Times())
        first_lines(cluster)
        environment = {**os.environ, **cluster["c2"].environment()}
        exporter = stack.enter_context(serving_pages(environment, tmp_path / "exporter.log"))
        browser.size(1200, 900)
        browser.open(exporter.url)
        browser.wait(lambda: bool(who_serves(browser)) and "would lose" in headline(browser))
        old = who_serves(browser)
        cut = monotonic()
        cluster[old].cut_power()
        browser.wait(lambda: "Nobody serves" in headline(browser), TURN_S)
        browser.wait(lambda: who_serves(browser) not in ("", old), TURN_S)
        note(f"an open page knew the new primary {monotonic() - cut:.1f} s after the cut")
        assert "takeover" in browser.text("[aria-label=History]")


def who_serves(browser: Browser) -> str:
    match = re.search(r"(zippy|c1|c2) serves data-services", headline(browser))
    return match[1] if match else ""
