"""`standfast watch` on a real Consul of three servers, one of which dies without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from standfast.consul.gateway import ConsulGateway
from standfast.consul.values import Registration
from standfast.errors import ConsulTimedOut
from standfast.system.clock import monotonic
from tests.contract.consul_scene import SYNCED, listed
from tests.support.consul_clusters import consul_binary, free_ports, leader_seen_by, real_servers
from tests.support.figures import note
from tests.support.pace import patient
from tests.support.scripts import script
from tests.support.storage_node import VOLUME, StorageNode
from tests.support.waiting import wait_for

HANDLERS = ("data-services-changed", "data-services-remount", "storage-role-changed")
pytestmark = SYNCED
SOON_S = 20.0
"""After the catalog has it. A query that waits at a frozen server is given up after 30 s."""
# As shipped it looks every 2 s; an answer may take as long as ever.
OFTEN = "from standfast.consul import watch; watch.LEADER_EVERY_S = 0.3"
COMMAND = "import sys; from standfast.cli.main import main; sys.exit(main(sys.argv[1:]))"


def calls(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


FORWARD = """
import asyncio, sys

async def pour(source, sink):
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
    sink.close()

async def forward(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(pour(reader, there[1]), pour(there[0], writer), return_exceptions=True)

async def main():
    server = await asyncio.start_server(forward, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""


@contextmanager
def watching(directory: Path, *addresses: str) -> Iterator[Callable[[], list[str]]]:
    """`standfast watch` of a node that knows these addresses; the calls of handlers so far."""
    tools, called = directory / "tools", directory / "called"
    for name in HANDLERS:
        script(tools / name, f'echo "{name} $(tr -d " \\n")" >> {called}')
    (tools / "consul").symlink_to(consul_binary())
    node = StorageNode(directory, addresses[0], 20490)
    node.configure(consul={"addresses": list(addresses)})
    watch = subprocess.Popen(
        [sys.executable, "-c", f"{OFTEN}\n{COMMAND}", "watch", VOLUME],
        env=node.environment(PATH=f"{tools}:{os.environ['PATH']}"),
    )
    try:
        wait_for(lambda: len(calls(called)) >= len(HANDLERS), 60.0, "a first call of each handler")
        yield lambda: calls(called)
    finally:
        watch.terminate()
        watch.wait(patient(20.0))


def is_seen_soon(called: Callable[[], list[str]], consul: ConsulGateway) -> None:
    """A change that is made now."""
    change = Registration("s1", VOLUME, "127.0.0.9", 2049, {"epoch": "2"}, 30.0, "serving")

    def is_taken() -> bool:
        """After an election an agent may still wait for the old leader; asking again is safe."""
        try:
            consul.register(change)
        except ConsulTimedOut:
            return False
        return True

    wait_for(is_taken, 60.0, "its agent takes the change")
    listed(consul, VOLUME)
    changed = monotonic()
    wait_for(
        lambda: any(
            line.startswith("data-services-remount") and "127.0.0.9" in line for line in called()
        ),
        SOON_S,
        "the change is seen",
    )
    note(f"a watch that waited where nobody answers saw a change in {monotonic() - changed:.1f} s")


def test_a_watch_sees_a_change_soon_though_it_waited_at_a_server_that_froze(
    tmp_path: Path,
) -> None:
    with real_servers(tmp_path) as servers:
        leader = next(server for server in servers if leader_seen_by(server) == server.rpc)
        local = next(server for server in servers if server is not leader)
        with watching(tmp_path, local.cluster.address) as called:
            leader.process.send_signal(signal.SIGSTOP)
            wait_for(lambda: leader_seen_by(local) not in ("", leader.rpc), 60.0, "another leader")
            is_seen_soon(called, local.cluster.gateway())


def test_a_watch_moves_on_when_the_agent_of_its_node_hangs(tmp_path: Path) -> None:
    """What hangs is a way to it: connections are taken, and nothing is answered."""
    with real_servers(tmp_path, 1) as [server]:
        [port] = free_ports(1)
        own = subprocess.Popen(
            [sys.executable, "-c", FORWARD, str(port), server.cluster.address.split(":")[1]]
        )
        try:
            with watching(tmp_path, f"127.0.0.1:{port}", server.cluster.address) as called:
                own.send_signal(signal.SIGSTOP)
                is_seen_soon(called, server.cluster.gateway())
        finally:
            own.kill()
            own.wait()
