"""Headless Chromium by the WebDriver protocol: what the tests of the status page need of it, and
no library for it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import needs
from tests.support.consul_clusters import free_ports
from tests.support.pace import patient
from tests.support.waiting import NotInTime, wait_for

START_S = 60.0
ANSWER_S = 60.0
# Nothing of the browser's own goes out: there is nobody to answer.
OPTIONS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ),
    *("--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@dataclass(frozen=True)
class Browser:
    """One session; every call ends within ANSWER_S."""

    base: str

    def post(self, path: str, doc: object) -> Any:
        return _call(f"{self.base}/{path}", "POST", doc)

    def open(self, url: str) -> None:
        self.post("url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """The value that the body of a function returns."""
        return self.post("execute/sync", {"script": script, "args": arguments})

    def devtools(self, command: str, **parameters: object) -> Any:
        return self.post("goog/cdp/execute", {"cmd": command, "params": parameters})

    def text(self, selector: str = "body") -> str:
        """What a person sees of it; empty: there is no such element."""
        script = "const e = document.querySelector(arguments[0]); return e ? e.innerText : '';"
        return str(self.run(script, selector))

    def wait(self, what: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Until it is so; AssertionError with what the page shows."""
        try:
            wait_for(what, limit_s, "the page is as it should be", 0.05)
        except NotInTime as error:
            raise AssertionError(f"{error}; it shows: {self.text()[:2000]}") from error

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )

    def dark(self, on: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def headless(directory: Path) -> Iterator[Browser]:
    """A browser with an empty profile below `directory`; skips where there is none."""
    needs.require({"chromium": "chromium", "chromedriver": "chromium-driver"})
    [port] = free_ports(1)
    with (directory / "chromedriver.log").open("wb") as log:
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}", "--allowed-ips=127.0.0.1"],
            stdout=log,
            stderr=log,
        )
    try:
        base = _session(f"http://127.0.0.1:{port}", directory)
        try:
            yield Browser(base)
        finally:
            _call(base, "DELETE")
    finally:
        driver.terminate()
        driver.wait(patient(20.0))


def _session(driver: str, directory: Path) -> str:
    def ready() -> bool:
        with contextlib.suppress(OSError):
            return bool(_call(f"{driver}/status", "GET")["ready"])
        return False

    wait_for(ready, START_S, "chromedriver is ready", 0.05)
    chrome = {"args": [*OPTIONS, f"--user-data-dir={directory / 'profile'}"]}
    wanted = {"browserName": "chrome", "goog:chromeOptions": chrome}
    made = _call(f"{driver}/session", "POST", {"capabilities": {"alwaysMatch": wanted}})
    return f"{driver}/session/{made['sessionId']}"


def _call(url: str, method: str, doc: object = None) -> Any:
    body = None if doc is None else json.dumps(doc).encode()
    request = urllib.request.Request(url, body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=patient(ANSWER_S)) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {url}: {error.read().decode()[:2000]}") from error
