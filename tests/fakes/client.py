"""A client in memory, behind clients.ports: servers with trees, a mount table, Consul's word.

It keeps its own account of what each mount really is, and notes a sin whenever a healthy mount of
the server that Consul names is taken away, or anything that is no NFS mount of the volume.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from standfast.clients.loop import Parts, Remount
from standfast.clients.observation import Answer, Tie
from standfast.clients.ports import Namespace, Use
from standfast.config.client import Client
from standfast.config.model import Config
from standfast.consul.gateway import Entry, Instance
from standfast.consul.records import Holder, Leader, LeaderState, dump_epoch
from standfast.errors import CommandFailed, ConsulNoQuorum, TimedOut
from standfast.system.clock import Deadline
from standfast.system.mountinfo import Mount, canonical, mounted_at, wire_fsid
from tests.support.configs import config_in, config_of

SERVICE_ID = config_of().service_id


def fsid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


@dataclass
class FakeClient:
    """Servers are addresses; the tree that one serves is a number, None while it is dead."""

    config: Config
    trees: dict[str, int | None] = field(default_factory=dict)
    instances_: list[Instance] = field(default_factory=list)
    keys: dict[str, bytes] = field(default_factory=dict)
    consul_up: bool = True
    kernel: bool = True
    """The kernel tells the fsids on the wire."""
    table: list[Mount] = field(default_factory=list)
    really: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Number of a mount -> server and tree."""
    tie_: Tie = field(default_factory=lambda: Tie(unit=True))
    unit_options: str | None = None
    dependants_: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    """Services that are active, besides the dependants."""
    uses: tuple[Use, ...] = ()
    others: tuple[Namespace, ...] = ()
    log: list[str] = field(default_factory=list)
    sins: list[str] = field(default_factory=list)
    woken: list[Path] = field(default_factory=list)
    """Mounts whose waiting users got an error."""
    told: dict[str, bytes] = field(default_factory=dict)
    """What was written to Consul."""
    fail: str | None = None
    """The next effect of this name fails."""
    given_s: dict[str, float] = field(default_factory=dict)
    """Effect -> the longest that it was allowed to take, seconds."""

    @property
    def path(self) -> Path:
        return self.config.paths.bind

    @property
    def parts(self) -> Parts:
        return Parts(self.config, self, self, self, self)

    def run(self, *, thorough: bool = True, limit_s: float = 0.0) -> Remount:
        """One run of the handler; a limit of 0: one attempt."""
        remount = Remount(self.parts, thorough=thorough, limit=Deadline.after(limit_s))
        remount.run()
        return remount

    # What happens around it

    def serve(self, address: str, epoch: int, tree: int) -> None:
        self.trees[address] = tree
        self.hold(address, epoch)
        node = node_of(address, self.config)
        self.instances_ = [instance(address, epoch, fsid(tree), node=node)]

    def hold(self, address: str, epoch: int, candidates: tuple[str, ...] = ()) -> None:
        """The node there has the epoch by Consul's keys, whatever is registered."""
        self.keys = keys_of(self.config, address, epoch, candidates)

    @property
    def named(self) -> tuple[str, str] | None:
        """Address and fsid that Consul names."""
        if not self.consul_up or not self.instances_:
            return None
        return self.instances_[0].address, self.instances_[0].meta.get("fsid", "")

    @property
    def top(self) -> Mount | None:
        return next((m for m in reversed(self.table) if m.point == str(self.path)), None)

    def is_right(self) -> bool:
        top = self.top
        if top is None or top.id not in self.really:
            return False
        address, tree = self.really[top.id]
        return (address, fsid(tree)) == self.named

    def push(self, kind: str, point: Path | None = None, source: str = "", **facts: str) -> Mount:
        """Numbers and devices are the lowest that are free: they are used again, as the kernel's.
        A file system that is still mounted somewhere keeps its device."""
        number = next(n for n in range(100, 1000) if n not in {m.id for m in self.table})
        device = facts.get("device") or next(
            d for d in (f"0:{n}" for n in range(50, 999)) if d not in {m.device for m in self.table}
        )
        mount = Mount(
            device, facts.get("root", "/"), str(point or self.path), kind, number, source,
            facts.get("options", ""),
        )  # fmt: skip
        self.table.append(mount)
        return mount

    def mounted(self, address: str, tree: int, point: Path | None = None) -> Mount:
        source = f"{address}:{self.config.paths.live}"
        mount = self.push("nfs4", point, source, options=f"rw,vers=4.2,hard,addr={address}")
        self.really[mount.id] = (address, tree)
        return mount

    def bound(self, of: Mount, point: Path, root: str = "/") -> Mount:
        """A bind mount of a part of another mount."""
        mount = self.push(
            of.kind, point, of.source, options=of.options, device=of.device, root=root
        )
        if of.id in self.really:
            self.really[mount.id] = self.really[of.id]
        return mount

    def pop(self, point: Path | None = None) -> Mount:
        mount = next(m for m in reversed(self.table) if m.point == str(point or self.path))
        self.table.remove(mount)
        self.really.pop(mount.id, None)
        return mount

    def _effect(self, name: str, deadline: Deadline) -> None:
        kind = name.partition(":")[0]
        self.given_s[kind] = max(self.given_s.get(kind, 0.0), deadline.remaining_s())
        if self.fail == kind:
            self.fail = None
            raise CommandFailed(f"{name}: made to fail", returncode=1)
        self.log.append(name)

    # Mounts

    def here(self) -> Sequence[Mount]:
        return list(self.table)

    def namespaces(self) -> Sequence[Namespace]:
        return self.others

    def wires(self) -> Mapping[str, str]:
        if not self.kernel:
            return {}
        return {
            m.device: wire_fsid(fsid(self.really[m.id][1])) or ""
            for m in self.table
            if m.id in self.really
        }

    def mount(self, source: str, path: Path, options: str, deadline: Deadline) -> None:
        address = source.partition(":")[0]
        self._effect(f"mount:{source}:{options}", deadline)
        tree = self.trees.get(address)
        if tree is None:
            raise TimedOut(f"mount from {address} did not end before its deadline")
        assert path == self.path
        self.mounted(address, tree)

    def bind(self, source: Path, path: Path, deadline: Deadline) -> None:
        self._effect(f"bind:{source}:{path}", deadline)
        top = self.top
        assert top is not None
        inside = source.relative_to(self.path)
        self.bound(top, path, f"/{inside}" if inside.parts else "/")

    def let_go(self, path: Path, deadline: Deadline, *, wake: bool = True) -> None:
        self._effect(f"let-go:{path}", deadline)
        if wake:
            self.woken.append(path)
        top = mounted_at(self.table, path)
        if top is None:
            raise CommandFailed(f"{path} is not mounted", returncode=32)
        if not top.is_nfs:
            self.sins.append(f"took a {top.kind} away")
        if path == self.path and self.is_right() and self._answer(top) is Answer.ANSWERS:
            self.sins.append(f"took a healthy mount of {self.named} away")
        self.pop(path)

    def _answer(self, mount: Mount) -> Answer:
        address, tree = self.really[mount.id]
        now = self.trees.get(address)
        return Answer.HANGS if now is None else Answer.ANSWERS if now == tree else Answer.STALE

    def probe(self, path: Path, deadline: Deadline) -> tuple[Answer, str]:
        self._effect("probe", deadline)
        assert self.top is not None
        return self._answer(self.top), ""

    def resolve(self, name: str, deadline: Deadline) -> frozenset[str]:
        return frozenset({canonical(name)}) if name[0].isdigit() else frozenset()

    # Processes, units, Consul

    def users(self, path: Path, mount_ids: Collection[int]) -> Sequence[Use]:
        self.log.append("users")
        return [use for use in self.uses if Path(use.target).is_relative_to(path)]

    def tie(self, path: Path) -> Tie:
        return self.tie_

    def options(self, path: Path) -> str | None:
        return self.unit_options

    def dependants(self, path: Path) -> tuple[str, ...]:
        return self.dependants_

    def active(self, units: Sequence[str]) -> tuple[str, ...]:
        return tuple(unit for unit in units if unit in self.dependants_ + self.running)

    def restart(self, units: Sequence[str], deadline: Deadline) -> None:
        self._effect(f"restart:{','.join(units)}", deadline)

    def end_mounting(self, path: Path, deadline: Deadline) -> None:
        self._effect("end-mounting", deadline)

    def instances(
        self, service: str, *, consistent: bool = True, deadline: Deadline | None = None
    ) -> tuple[Instance, ...]:
        if not self.consul_up:
            raise ConsulNoQuorum("Consul has no leader")
        return tuple(self.instances_)

    def get(
        self, key: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> Entry | None:
        assert consistent
        if not self.consul_up:
            raise ConsulNoQuorum("Consul has no leader")
        value = self.keys.get(key)
        return None if value is None else Entry(key, value, 1)

    def put(self, key: str, value: bytes, *, deadline: Deadline | None = None) -> None:
        assert deadline is not None and deadline.remaining_s() <= 2.0
        self._effect(f"put:{key}", deadline)
        if not self.consul_up:
            raise ConsulNoQuorum("Consul has no leader")
        self.told[key] = value


def node_of(address: str, config: Config) -> str:
    return next(name for name, node in config.nodes.items() if node.address == address)


def instance(
    address: str,
    epoch: int,
    fsid_: str,
    *,
    node: str = "",
    checks: str = "passing",
    node_health: str = "passing",
) -> Instance:
    """As a storage node registers itself; its name is that of the tests' usual configuration."""
    name = node or f"n{int(address.rpartition('.')[2]) - 1}"
    meta = {"epoch": str(epoch), "node": name, "fsid": fsid_}
    made = (SERVICE_ID, name, address, 2049, meta, node_health, checks)
    return Instance(*made, has_own_check=True)


def keys_of(
    config: Config, address: str, epoch: int, candidates: tuple[str, ...] = ()
) -> dict[str, bytes]:
    """The keys of an epoch of the node with that address."""
    holder = Holder(node_of(address, config), "boot-1")
    leader = Leader(epoch, holder, 7, LeaderState.SERVING, candidates or tuple(config.nodes))
    return {config.key("epoch"): dump_epoch(epoch), config.key("leader"): leader.dump()}


def fake_client(directory: Path, **client: object) -> FakeClient:
    """A node that is no storage node."""

    config = config_in(directory)
    settings = Client(**{"spread": 0.0, **client})  # type: ignore[arg-type]
    return FakeClient(replace(config, node="client-7", client=settings))
