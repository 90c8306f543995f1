"""`standfast watch` on a real Consul of three servers, one of which dies without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from standfast.clock import Deadline, sleep
from tests.contract.consul_clusters import consul_binary, leader_seen_by, real_servers
from tests.contract.storage_node import VOLUME, StorageNode

HANDLERS = ("data-services-changed", "data-services-remount", "storage-role-changed")
SOON_S = 20.0
"""After the change. A query that waits at a frozen server is given up after 30 s and more."""


def calls(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_watch_sees_a_change_soon_though_it_waited_at_a_server_that_froze(
    tmp_path: Path,
) -> None:
    tools, called = tmp_path / "tools", tmp_path / "called"
    tools.mkdir()
    for name in HANDLERS:
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $(tr -d " \\n")" >> {called}\n')
        (tools / name).chmod(0o755)
    (tools / "consul").symlink_to(consul_binary())
    with real_servers(tmp_path) as servers:
        leader = next(one for one in servers if leader_seen_by(one) == one.rpc)
        local = next(one for one in servers if one is not leader)
        node = StorageNode(tmp_path, local.cluster.address, 20490)
        node.configure()
        watch = subprocess.Popen(
            [sys.executable, "-m", "standfast", "watch", VOLUME],
            env=node.environment(PATH=f"{tools}:{os.environ['PATH']}"),
        )
        try:
            wait_until(lambda: len(calls(called)) >= len(HANDLERS), 30.0)
            leader.process.send_signal(signal.SIGSTOP)
            wait_until(lambda: leader_seen_by(local) not in ("", leader.rpc), 30.0)
            local.cluster.gateway().register(
                "s1", VOLUME, "127.0.0.9", 2049, {"epoch": "2"}, 30.0, "serving"
            )
            changed = time.monotonic()
            wait_until(
                lambda: any(
                    line.startswith("data-services-remount") and "127.0.0.9" in line
                    for line in calls(called)
                ),
                60.0,
            )
            assert time.monotonic() - changed < SOON_S
        finally:
            watch.terminate()
            watch.wait(20)


def wait_until(there: Callable[[], bool], limit_s: float) -> None:
    deadline = Deadline.after(limit_s)
    while not there():
        assert not deadline.expired, "it did not happen in time"
        sleep(0.1)
