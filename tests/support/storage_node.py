"""A storage node's files on loopback: everything that the guard looks at, made by the product."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import structs

from standfast.assembly.parts import Parts, use
from standfast.config.load import load
from standfast.config.model import Config
from standfast.consul.gateway import ConsulGateway
from standfast.consul.records import Holder, Leader, LeaderState, dump_epoch
from standfast.demo.consul.server import EmbeddedConsul
from standfast.demo.nodes import as_toml, paths_on
from standfast.demo.parts import DemoParts
from standfast.demo.stand_ins.directory import DirectoryStore, initialise
from standfast.demo.stand_ins.fence import FileFence
from standfast.lease.epochs import EpochFile
from standfast.lease.files import LeaseStatus, boot_instance
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.node.ports import LiveTree
from standfast.system.clock import monotonic
from tests.support.checkout import CHECKOUT
from tests.support.consul_clusters import free_ports
from tests.support.pace import patient

HANDLERS = CHECKOUT / "handlers"
VOLUME = "data-services"
EPOCH = 7
ADDRESSES = {"n1": "127.0.0.1", "n2": "127.0.0.2", "n3": "127.0.0.3"}


@dataclass
class StorageNode:
    """The node n1: its configuration is written again by `configure`."""

    root: Path
    consul: str
    port: int
    name: str = "n1"
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.root / "etc" / f"{VOLUME}.toml"

    @property
    def config(self) -> Config:
        return load(self.file)

    @property
    def gateway(self) -> ConsulGateway:
        return ConsulGateway([self.consul], timeout_s=5)

    @property
    def holder(self) -> Holder:
        return Holder(self.name, boot_instance(self.config.paths.run))

    def configure(self, **tables: dict[str, Any]) -> Config:
        """Write the configuration, with more keys in its tables."""
        self.tables |= tables
        base: dict[str, dict[str, Any]] = {
            "": {"cluster": "test", "node": self.name},
            **{f"nodes.{name}": {"address": address} for name, address in ADDRESSES.items()},
            "paths": paths_on(self.root / "disk"),
            "consul": {"addresses": [self.consul]},
            "nfs": {"port": self.port},
            "guard": {"deadline": 60.0},
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(as_toml(base, self.tables))
        return self.config

    def environment(self, **more: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if "CONSUL" not in key}
        return {**kept, "STANDFAST_CONFIG_DIR": str(self.file.parent), **more}

    # What a primary has

    def be_primary(self, epoch: int = EPOCH) -> None:
        """All that makes the guard say yes, but for Consul's part."""
        config = self.config
        initialise(config.paths.live)
        config.paths.standby.mkdir(parents=True, exist_ok=True)
        EpochFile(config.state_dir / "epoch").raise_to(epoch)
        OwnEpoch(
            epoch, Stage.READY, "00000000-0000-4000-8000-000000000007", None, True,
            live_uuid=self.live().uuid,
        ).save(config.state_dir)  # fmt: skip
        self.fence().ensure_closed()
        self.hold()

    def fence(self) -> FileFence:
        return FileFence(self.config.paths.run / "fence", self.port)

    def live(self) -> LiveTree:
        live = DirectoryStore(self.config.paths).live()
        assert live is not None
        return live

    def hold(self, *, remaining_s: float = 60.0, **changes: Any) -> None:
        """The keeper's last word."""
        now = monotonic()
        until = now + remaining_s
        status = LeaseStatus(
            EPOCH,
            self.holder.instance,
            os.getpid(),
            LeaderState.STARTING,
            False,
            until,
            until,
            3,
            now,
        )
        structs.replace(status, **changes).save(self.config.run_dir)

    def change_epoch(self, **changes: Any) -> None:
        own = OwnEpoch.load(self.config.state_dir)
        assert own is not None
        structs.replace(own, **changes).save(self.config.state_dir)

    def publish(self, epoch: int = EPOCH, leader: Leader | None = None) -> None:
        """Consul's part: both keys."""
        if leader is None:
            leader = Leader(epoch, self.holder, 3, LeaderState.STARTING, ("n2", "n3"))
        self.gateway.put(self.config.key("epoch"), dump_epoch(epoch))
        self.gateway.put(self.config.key("leader"), leader.dump())


@dataclass(frozen=True)
class Ended:
    """How a process ended, and after how long."""

    code: int
    out: str
    said: str
    took_s: float


def run_handler(
    name: str,
    *arguments: str,
    env: Mapping[str, str],
    stdin: int | bytes | None = b"",
    changed: str = "",
    parts: str = "DemoParts",
) -> Ended:
    """A deployed handler as a process, with this interpreter; TimeoutExpired when it hangs.

    `changed` are statements to run before it: other seconds for what it waits for. `parts` is the
    class of what it is made of: the demo's, or this machine's own (`Parts`); empty: nothing is
    loaded before it.
    """
    module = "standfast.demo.parts" if parts == "DemoParts" else "standfast.assembly.parts"
    made_of = (
        f"from standfast.assembly.parts import use; from {module} import {parts}; use({parts}())"
    )
    run = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    before = ["-c", f"{made_of if parts else ''}\n{changed}\n{run}"]
    started = monotonic()
    with subprocess.Popen(
        [sys.executable, *before, str(HANDLERS / name), *arguments],
        env=dict(env),
        stdin=stdin if isinstance(stdin, int) else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            given = None if isinstance(stdin, int) else stdin
            out, said = process.communicate(given, timeout=patient(20.0))
        finally:
            process.kill()
    took_s = monotonic() - started
    return Ended(
        process.returncode, out.decode(errors="replace"), said.decode(errors="replace"), took_s
    )


def guard(node: StorageNode, **env: str) -> Ended:
    """As systemd runs it: with a timer that ends it after a few seconds, whatever it does."""
    return run_handler("nfs-server-guard", env=node.environment(**env))


def unhurried_guard(
    node: StorageNode, *, stdin: int | bytes | None = b"", changed: str = "", **env: str
) -> Ended:
    """The same without that timer: for answers that are the same on a slow machine."""
    no_timer = f"import signal; signal.setitimer = lambda *_: None\n{changed}"
    return run_handler(
        "nfs-server-guard", env=node.environment(**env), stdin=stdin, changed=no_timer
    )


@contextlib.contextmanager
def embedded_primary(root: Path) -> Iterator[tuple[StorageNode, EmbeddedConsul]]:
    """A node that may serve, and the embedded cluster of three nodes that says so."""
    with EmbeddedConsul(no_leader_after_s=0.2) as consul:
        for name, address in ADDRESSES.items():
            consul.add_agent(name, address)
        [port] = free_ports(1)
        node = StorageNode(root, consul.address("n1"), port)
        node.configure()
        node.be_primary()
        node.publish()
        use(DemoParts())  # for what is asked in this process
        try:
            yield node, consul
        finally:
            use(Parts())
