"""The exporter as a process: what Prometheus, load balancers, slow clients and strangers get."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from standfast.config.load import load
from standfast.config.model import Config
from standfast.demo.commands import command
from standfast.errors import Unreachable
from standfast.exporter.exporter import serve
from standfast.exporter.server import CONNECTIONS, MOST_HEADER_BYTES, PATIENCE_S, THREADS
from standfast.lease.epochs import EpochFile
from standfast.reasons import Reason
from standfast.replication import state
from standfast.system.clock import monotonic
from tests.support import needs
from tests.support.checkout import CHECKOUT
from tests.support.exporter import Exporter, agent, exporting
from tests.support.figures import note
from tests.support.metrics import PRIMARY, values
from tests.support.pace import patient
from tests.support.terminal import write_config
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("demo_parts")

HEADERS = ("Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load(write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"]))


def test_a_scrape_where_nothing_else_runs(config: Config) -> None:
    EpochFile(config.state_dir / "epoch").raise_to(3)
    state.note_failure(config, "c1", Reason.REPLICATION_FAILED, "no route")
    with exporting(config) as exporter:
        status, headers, text = exporter.get("/metrics", Accept="text/plain;version=0.0.4")
        metrics = values(text)
        listening = [
            line.split()[1]
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[3] == "0A" and line.split()[1].endswith(f":{exporter.port:04X}")
        ]
        roles = [exporter.get(path)[0] for path in ("/primary", "/standby")]
        posted = exporter.get("/metrics", method="POST")[0]
        head = exporter.get("/metrics", method="HEAD")
        everything = [exporter.get(path)[1] for path in ("/", "/nothing", "/api/v1/status")]
        for _ in range(2 * THREADS):  # a place is given back
            assert exporter.get("/-/healthy")[0] == 200
        log = exporter.log.read_text()
    assert (status, metrics["standfast_up{agent}"], metrics["standfast_up{consul}"]) == (200, 0, 0)
    assert metrics["standfast_up{store}"] == metrics["standfast_up{replication}"] == 1
    assert metrics["standfast_failover_blocked{consul-unreachable}"] == 1
    assert metrics["standfast_replication_failures_total{replication-failed,c1}"] == 1
    assert metrics["standfast_replication_age_seconds{zippy}"] == math.inf
    assert listening == [f"0100007F:{exporter.port:04X}"]
    assert (roles, posted, head[0], head[2]) == ([503, 503], 405, 200, "")
    for sent in (headers, *everything):
        assert all(name in sent for name in HEADERS)
        assert sent["Cache-Control"] == "no-store"
    assert "everybody" not in log


def test_with_an_agent_both_formats_are_clean_and_the_roles_are_told(config: Config) -> None:
    with agent(config, PRIMARY), exporting(config) as exporter:
        plain = exporter.get("/metrics")
        asked = "application/openmetrics-text;version=1.0.0"
        openmetrics = exporter.get("/metrics", Accept=asked)
        roles = [exporter.get(path)[0] for path in ("/primary", "/standby", "/primary?volume=x")]
    assert values(plain[2])["standfast_serving{}"] == 1
    assert openmetrics[1]["Content-Type"].startswith("application/openmetrics-text")
    assert openmetrics[2].endswith("# EOF\n")
    assert roles == [200, 503, 404]
    needs.require({"promtool": "prometheus"})
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=plain[2], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_agent_that_hangs_costs_a_scrape_its_patience_and_nothing_else(config: Config) -> None:
    with agent(config, None), exporting(config) as exporter:
        timeout = {"X_Prometheus_Scrape_Timeout_Seconds": "6"}
        texts: list[str] = []
        scrapes = [
            threading.Thread(target=lambda: texts.append(exporter.get("/metrics", **timeout)[2]))
            for _ in range(4)
        ]
        for scrape in scrapes:
            scrape.start()
        healthy = exporter.get("/-/healthy")[0]
        for scrape in scrapes:
            scrape.join(patient(60.0))
    assert healthy == 200
    assert len(texts) == 4
    for text in texts:
        metrics = values(text)
        assert metrics["standfast_up{agent}"] == 0
        assert metrics["standfast_up{replication}"] == metrics["standfast_up{store}"] == 1


def strangers(exporter: Exporter, number: int, sent: bytes) -> contextlib.ExitStack:
    """Connections from another address that send this much and then nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            client = socket.create_connection(
                ("127.0.0.1", exporter.port), patient(20.0), source_address=("127.0.0.2", 0)
            )
            stack.enter_context(client)
            client.sendall(sent)
        return stack.pop_all()


def test_slow_clients_keep_nobody_else_out_while_there_are_places(config: Config) -> None:
    with (
        exporting(config) as exporter,
        strangers(exporter, CONNECTIONS // 2, b"GET /metrics HTTP/1.1\r\nX: "),
    ):
        started = monotonic()
        assert exporter.get("/metrics")[0] == 200
        took_s = monotonic() - started
        threads = len(list(Path(f"/proc/{exporter.process.pid}/task").iterdir()))
    assert took_s < patient(PATIENCE_S / 2)
    assert threads <= 2 * THREADS


def test_clients_that_drip_hold_no_place_for_long(config: Config) -> None:
    """A byte a second is a sign of life to most servers: 16 KiB of them take four hours."""
    with (
        exporting(config) as exporter,
        dripping(exporter, 100) as dripped,
    ):
        started = monotonic()
        assert exporter.get("/metrics")[0] == 200
        wait_for(dripped.is_set, 3 * PATIENCE_S, "every one of them is cut off")
        took_s = monotonic() - started
    note(f"the last of 100 clients that sent a byte a second was cut off after {took_s:.1f} s")


@contextlib.contextmanager
def dripping(exporter: Exporter, count: int) -> Iterator[threading.Event]:
    """Clients that begin a request and go on with a byte a second; set when none is left."""
    ended, stopping = threading.Event(), threading.Event()
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", exporter.port), patient(20.0))
            clients.append(stack.enter_context(client))
            client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            client.setblocking(False)

        def drip() -> None:
            left = list(clients)
            while left and not stopping.wait(1.0):
                for client in list(left):
                    try:
                        client.sendall(b"x")
                        if client.recv(4096) == b"":
                            left.remove(client)
                    except BlockingIOError:
                        continue
                    except OSError:
                        left.remove(client)
            if not left:
                ended.set()

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield ended
        finally:
            stopping.set()
            thread.join()


def test_silent_clients_that_hold_every_place_are_cut_off(config: Config) -> None:
    with exporting(config) as exporter, strangers(exporter, CONNECTIONS + 20, b"GET /"):
        started = monotonic()
        assert exporter.get("/-/healthy")[0] == 200
        took_s = monotonic() - started
        log = exporter.log.read_text()
    note(f"a client waited {took_s:.1f} s for a place that silent ones had taken")
    assert took_s < patient(3 * PATIENCE_S)
    assert "connection limit" in log


def test_the_nonsense_of_strangers_ends_nothing_and_is_not_logged(config: Config) -> None:
    nonsense = [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET " + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"GET http://[HUNTER2] HTTP/1.1\r\n\r\n",
        b"GET /HUNTER2 HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
        b"POST /HUNTER2 HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nHUNTER2\r\n",
        b"\r\n\r\n",
        b"HUNTER2 /HUNTER2 HTTP/1.1\r\nHUNTER2: HUNTER2\r\n\r\n",
        b"hunter2 /HUNTER2 HTTP/1.1\r\nHUNTER2\r\n\r\n",
        b"",
    ]
    with exporting(config) as exporter:
        for sent in nonsense:
            connection = socket.create_connection(("127.0.0.1", exporter.port), 20)
            with connection, contextlib.suppress(OSError):
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
        statuses = [
            exporter.get("/", method="POST", X="x" * MOST_HEADER_BYTES)[0],
            exporter.get("/metrics", Accept="text/plain;version=HUNTER2")[0],
            exporter.get("/-/healthy")[0],
        ]
        log = exporter.log.read_text()
    assert statuses == [431, 200, 200]
    assert "HUNTER2" not in log
    assert "Traceback" not in log


def test_an_interrupt_is_told_as_one(config: Config) -> None:
    with exporting(config) as exporter:
        os.kill(exporter.process.pid, signal.SIGINT)
        assert exporter.process.wait(patient(20.0)) == 130


def test_an_address_in_use_is_named(config: Config) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unreachable, match=at):
            serve([config], at)


def test_a_file_is_written_once_for_node_exporter(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "standfast.prom"
    words = command(str(CHECKOUT / "exporters/standfast-exporter"), "--textfile", str(path))
    environment = {"STANDFAST_CONFIG_DIR": str(config.source.parent), "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "")
    at_once = subprocess.run(
        [*words, "--listen", "127.0.0.1:1"], env=environment, capture_output=True, timeout=100
    )
    assert (at_once.returncode, b"--textfile" in at_once.stderr) == (2, True)
    names = {family.name for family in text_string_to_metric_families(path.read_text())}
    assert {"standfast_up", "standfast_time_seconds"} <= names
