"""Looks at a node from which Standfast is to be taken; what can't be looked at is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from standfast.assembly.parts import open_store, parts
from standfast.clients.units import unit_files, unit_name
from standfast.config.model import Config
from standfast.consul.gateway import PATIENT_S, ConsulGateway
from standfast.consul.records import Leader, longest_wait_s
from standfast.consul.volume_keys import keys_of
from standfast.errors import StandfastError, ours
from standfast.fence.choice import fence_from
from standfast.fence.made_for import MadeFor
from standfast.lease.files import LeaseStatus
from standfast.names import parse_aside
from standfast.nfs.foreign_exports import plain_export_file
from standfast.nfs.kernel import export_line
from standfast.nfs.state import SETTINGS
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.replication.authorized import revoke
from standfast.replication.authorized_file import authorized_keys_of
from standfast.replication.keys import comment_of, public_path
from standfast.replication.reporting import leader_of
from standfast.setup.look import MANAGED, MOUNTS, disk_of, foreign_mount
from standfast.setup.record import NAME, Installed, readable
from standfast.setup.removal import InConsul, Leaving
from standfast.setup.shipped import PROGRAMS, UNITS, Places, Shipped
from standfast.setup.wanted import Wanted, drop_ins, wanted
from standfast.system.clock import Deadline, monotonic, sleep
from standfast.system.files import read_foreign_text
from standfast.system.lines import fields_of
from standfast.system.mountinfo import mounted_at, parse_mountinfo
from standfast.system.systemd import RUNTIME_UNITS, SystemdUnits

T = TypeVar("T")
POLL_S = 0.5
PROCESSES = "the units"
WRITTEN = "# Written by Standfast"
KEPT = ("known_hosts", NAME)
"""Files in the state directory for all volumes together."""
RUN = ("fence", "instance", "receive.sock", "setup.lock")
"""The same in the directory of this boot."""


@dataclass(slots=True)
class Look:
    """One look, and what of it failed."""

    config: Config
    last: bool
    shipped: Shipped
    places: Places
    asks_consul: bool = True
    waits: bool = False
    """For the heartbeats of another node, of which nothing else is known."""
    unknown: list[str] = field(default_factory=list)

    def leaving(self) -> Leaving:
        config = self.config
        installed = readable(self.places.at(config.paths.state / NAME))
        goal = self._goal()
        files, altered = self._files(goal, installed)
        own = self._tried("the role", lambda: OwnEpoch.load(config.state_dir), None)
        return Leaving(
            config,
            self.last,
            role=self._role(own),
            fsid=own.fsid if own is not None and own.stage is Stage.READY else None,
            consul=in_consul(config, waits=self.waits) if self.asks_consul else InConsul(),
            units=tuple(self._tried(PROCESSES, self._units, [])),
            mounted=self._tried("the mounts", self._mounted, None),
            fenced=self.last and self._tried("the firewall", self._fenced, True),
            exported=self._storage("the export", lambda: parts().nfs(config).would_export(), True),
            files=tuple(files),
            altered=tuple(altered),
            was_enabled=installed.was_enabled,
            lines=self._storage("authorized_keys", self._lines, 0),
            keys=tuple(self._keys()),
            run=tuple(self._run_files()),
            state=tuple(self._state(installed)),
            data=tuple(self._storage("the storage", lambda: list(self._data()), [])),
            unknown=tuple(self.unknown),
            by_package=bool(self.shipped.by_package),
            export_taken=self._export_taken(own),
            blind=next((text for text in self.unknown if text.startswith(PROCESSES)), None),
        )

    def _export_taken(self, own: OwnEpoch | None) -> Path | None:
        path = plain_export_file(self.config)
        there = self.places.text(path)
        if there is None or own is None or own.fsid is None:
            return None if there is None else path
        return None if there == export_line(self.config, self.config.paths.live, own.fsid) else path

    def _tried(self, what: str, look: Callable[[], T], doubt: T) -> T:
        try:
            return look()
        except (StandfastError, OSError) as error:
            self.unknown.append(f"{what}: {ours(error)}")
            return doubt

    def _storage(self, what: str, look: Callable[[], T], doubt: T) -> T:
        if self.config.node not in self.config.nodes:
            return type(doubt)()
        return self._tried(what, look, doubt)

    def _role(self, own: OwnEpoch | None) -> str | None:
        if (doubt := self._doubt("the role")) is not None:
            return doubt
        if own is not None:
            return f"epoch {own.epoch}, {own.stage}"
        if not self.asks_consul:  # its volumes' configurations are gone, maybe not their roles
            state = self.places.at(self.config.paths.state)
            left = [path for directory in sorted(state.glob("*/"))
                    for path in OwnEpoch.paths(directory) if path.exists()]  # fmt: skip
            return f"{left[0]} says so, put its configuration back" if left else None
        lease = self._tried("the lease", lambda: LeaseStatus.load(self.config.run_dir), None)
        if lease is not None and lease.serves(monotonic()):
            return f"it holds the lease of epoch {lease.epoch}"
        return self._doubt("the lease")

    def _doubt(self, what: str) -> str | None:
        """Returns why this isn't known; None: it is."""
        return next((text for text in self.unknown if text.startswith(f"{what}: ")), None)

    # Files

    def _goal(self) -> Wanted:
        text = self.places.text(self.config.source) or ""
        disk = disk_of(self.config)
        return wanted(self.config, text, None, self.shipped, disk, mounts=True)

    def _files(self, goal: Wanted, installed: Installed) -> tuple[list[Path], list[Path]]:
        """Returns ours, and those that somebody has changed."""
        config = self.config
        own = {UNITS / name: text for name, text in unit_files(config).items()}
        drops = drop_ins(config, self.shipped, disk_of(config))
        own |= {UNITS / name: text for name, text in drops}
        known: dict[Path, str] = {**goal.units, **goal.catalog, **goal.pages, **own}
        kept = {config.source, config.consul.token_file, *self._key_paths()}
        names = {*known, *map(Path, installed.files)} - kept
        if not self.last:
            names &= set(own) - {UNITS / f"{config.nfs.unit}.d/standfast.conf"}
        files, altered = list[Path](), list[Path]()
        for path in sorted(names):
            text = self.places.text(path)
            if text is None or self._is_of_another(path):
                continue
            is_ours = text == known.get(path) or installed.wrote(path, text)
            (files if is_ours else altered).append(path)
        # What others wrote at the path of a mount unit was never ours.
        altered = [path for path in altered if path not in own or str(path) in installed.files]
        return [*files, *self._links(goal, installed), *self._made_at_run_time()], altered

    def _is_of_another(self, path: Path) -> bool:
        """Configurations are their volumes' own."""
        return path.parent == self.config.source.parent

    def _links(self, goal: Wanted, installed: Installed) -> Iterator[Path]:
        if not self.last:
            return
        known = {**{Path(link): to for link, to in installed.links.items()},
                 **{link: str(to) for link, to in goal.links.items()}}  # fmt: skip
        for link, to in sorted(known.items()):
            at = self.places.at(link)
            if link.parent == PROGRAMS and at.is_symlink() and str(at.readlink()) == to:
                yield link

    def _made_at_run_time(self) -> Iterator[Path]:
        volume = self.config.volume
        for path in sorted(self.places.at(RUNTIME_UNITS).glob("*.d/*.conf")):
            of_volume = f"@{volume}:" in path.parent.name or f"@{volume}." in path.parent.name
            timers = path.parent.name.startswith("standfast-") and (self.last or of_volume)
            bind = f"{unit_name(self.config.paths.bind, 'mount')}.d"
            if timers or (path.parent.name, path.name) == (bind, "standfast-bind.conf"):
                yield Path("/") / path.relative_to(self.places.root)
        if self.last and (self.places.text(SETTINGS) or "").startswith(WRITTEN):
            yield SETTINGS

    # Units and mounts

    def _units(self) -> list[str]:
        if not self.places.at(MANAGED).is_dir():
            return []  # nobody who could run one
        units = SystemdUnits()
        mounts = [] if foreign_mount(self.config, self.places) else list(unit_files(self.config))
        names = {*units.loaded("standfast-*"), *self._wanted_by("standfast-*")}
        found = {name for name in names if self.last or self._is_own(name)}
        found |= {name for name in mounts if self._wanted_by(name)}
        # What waits for its next start isn't active, and comes back; what has failed is shown.
        asked = {*found, *mounts}
        active = [name for name in asked if units.show(name, "ActiveState") != "inactive"]
        return sorted({*active, *(name for name in found if self._wanted_by(name))}, key=_order)

    def _is_own(self, name: str) -> bool:
        instance = name.partition("@")[2]
        return instance.startswith((f"{self.config.volume}.", f"{self.config.volume}:"))

    def _wanted_by(self, pattern: str) -> set[str]:
        return {path.name for path in self.places.at(UNITS).glob(f"*.wants/{pattern}")}

    def _mounted(self) -> str | None:
        bind = self.config.paths.bind
        seen = mounted_at(parse_mountinfo(read_foreign_text(MOUNTS)), bind)
        if seen is None:
            return None
        if self.config.node in self.config.nodes and parts().bind(self.config).is_mounted():
            return "bind"
        unit = UNITS / unit_name(bind, "mount")
        ours = self.places.text(unit) is not None or self.config.client.manage == "always"
        if seen.is_nfs and ours and foreign_mount(self.config, self.places) is None:
            return "nfs"
        return None

    def _fenced(self) -> bool:
        directory = self.config.paths.run / "fence"
        if not directory.exists():
            return False  # nobody has put rules up in this boot
        return MadeFor.load(directory) is not None or fence_from(self.config).state().in_place

    # Rights

    def _lines(self) -> int:
        if self.config.replication.command:
            return 0
        user = self.config.replication.ssh_user
        return revoke(authorized_keys_of(user), user, self.volume, dry_run=True)

    @property
    def volume(self) -> str | None:
        """Whose lines go; None: all volumes'."""
        return None if self.last else self.config.volume

    def _key_paths(self) -> tuple[Path, Path]:
        key = self.config.replication.ssh_key
        return key, public_path(key)

    def _keys(self) -> Iterator[Path]:
        """The key that this program made: an operator's own has another comment."""
        if not self.last or self.config.replication.command:
            return
        text = self.places.text(self._key_paths()[1]) or ""
        if fields_of(text.rstrip("\n"))[2:3] == [comment_of(self.config.cluster, self.config.node)]:
            yield from (path for path in self._key_paths() if self.places.at(path).exists())

    # What it knows, and what stays

    def _state(self, installed: Installed) -> Iterator[Path]:
        config = self.config
        token = config.consul.token_file
        there = [config.state_dir, config.source]
        if token is not None and self.last and str(token) in installed.files:
            there.append(token)
        if self.last:
            there += [config.paths.state / name for name in KEPT]
        yield from (path for path in there if self.places.at(path).exists())

    def _run_files(self) -> Iterator[Path]:
        config = self.config
        there = [config.paths.run / name for name in RUN] if self.last else []
        yield from (path for path in (config.run_dir, *there) if self.places.at(path).exists())

    def _data(self) -> Iterator[tuple[str, str]]:
        config = self.config
        store, live = open_store(config), config.paths.live
        if live.exists():
            yield f"{live}: the volume itself", f"btrfs subvolume delete {live}"
        found = store.snapshots()
        for directory in dict.fromkeys(snapshot.path.parent for snapshot in found):
            count = sum(snapshot.path.parent == directory for snapshot in found)
            pattern = f"{directory}/{config.base}@*"
            yield f"{count} snapshots in {directory}", f"btrfs subvolume delete {pattern}"
        for path in store.aside():
            aside = parse_aside(path.name)
            kind = "kept aside" if aside is None else aside.kind
            yield f"{path}: {kind}", f"btrfs subvolume delete {path}"


def _order(name: str) -> tuple[int, str]:
    """Who would start others comes first, and the lease last."""
    for number, beginning in enumerate(
        ("standfast-agent@", "standfast-resync", "standfast-watch@")
    ):
        if name.startswith(beginning):
            return number, name
    if name.endswith((".timer", ".socket", ".automount")):
        return 4, name
    return 9 if name.startswith("standfast-lease@") else 5, name


def in_consul(config: Config, *, waits: bool) -> InConsul:
    """Asks Consul who uses the volume. With `waits` it takes a lease's time where another node's
    lease was not given up: its heartbeats are waited for."""
    try:
        consul = ConsulGateway.from_config(config, timeout_s=PATIENT_S)
        entries = [*consul.get_many(config.key("")), *consul.get_many(config.client_key(""))]
        keys = [entry.key for entry in entries]
        told = {"candidates", "standbys"}
        nodes = {name for kind, name in _named(keys, config) if kind in told} - {config.node}
        mine = (*keys_of(config, config.node), config.client_key(config.node))
        own = [key for key in mine if key in keys]
        registered = config.service_id in consul.local_services()
        instances = consul.instances(config.service)
        foreign = {one.node for one in instances if one.service_id == config.service_id}
        return InConsul(
            None,
            tuple(own),
            registered,
            tuple(sorted(nodes)),
            _holder(consul, config) if waits else None,
            len(keys),
            tuple(sorted(foreign - {config.node})),
        )
    except StandfastError as error:
        return InConsul(str(error))


def _named(keys: Sequence[str], config: Config) -> Iterator[tuple[str, str]]:
    prefix = config.key("")
    for key in keys:
        kind, _, name = key.removeprefix(prefix).partition("/")
        if key.startswith(prefix) and name:
            yield kind, name


def _holder(consul: ConsulGateway, config: Config) -> str | None:
    """Returns the other node whose heartbeats go on; None: there is none."""
    first = leader_of(config, consul)
    if first is None or first.is_clean or first.holder.node == config.node:
        return None
    deadline = Deadline.after(longest_wait_s(first, config.lease.wait))
    now: Leader | None = first
    while now is not None and now.identity == first.identity:
        if deadline.expired:
            return None
        sleep(POLL_S)
        now = leader_of(config, consul)
    return None if now is None or now.is_clean else now.holder.node
