"""Looks at the machine before setup; each look has a deadline, and what fails is said."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from standfast.assembly.parts import open_store, parts
from standfast.btrfs import info as btrfs_info
from standfast.btrfs.place import mount_point_of
from standfast.btrfs.versions import kernel, parse
from standfast.clients.units import unit_name
from standfast.config.load import config_files, load
from standfast.config.model import Config
from standfast.config.rules import check_together
from standfast.consul.gateway import PATIENT_S, ConsulGateway
from standfast.errors import ConfigError, StandfastError, ours
from standfast.fence.ipset import ipset_installed
from standfast.fence.nftables import nft_works
from standfast.nfs.foreign_exports import ETC, files_of_others, own_file
from standfast.nfs.state import exports_anything
from standfast.node.obstacle import Obstacle, Weight
from standfast.node.own_epoch import OwnEpoch
from standfast.replication.preflight import problems as storage_problems
from standfast.replication.reporting import leader_of
from standfast.replication.storage_facts import facts_here
from standfast.setup.observation import InConsul, Observed, Server
from standfast.setup.record import NAME, readable
from standfast.setup.shipped import SEARCHED, UNITS, Places, Shipped
from standfast.setup.wanted import CLIENT_UNITS, Wanted
from standfast.system.clock import Deadline
from standfast.system.environment import TAKEN
from standfast.system.files import read_foreign_text
from standfast.system.lines import fields_of, lines_of
from standfast.system.local_socket import ask
from standfast.system.mountinfo import mounted_at, parse_mountinfo
from standfast.system.systemd import SystemdUnits

MOUNTS = Path("/proc/self/mountinfo")
FSTAB = Path("/etc/fstab")
MANAGED = Path("/run/systemd/system")
ASK_S = 3.0
PATH = os.pathsep.join(SEARCHED)


def look(wanted: Wanted, shipped: Shipped, places: Places) -> Observed:
    """Returns what is there; StandfastError for what even a problem can't be made of."""
    config = wanted.config
    managed = places.at(MANAGED).is_dir()
    units = SystemdUnits()
    on = (*wanted.started, *wanted.enabled)
    token = config.consul.token_file
    return Observed(
        has_systemd=managed,
        kernel=parse(kernel()),
        lacking=tuple(_lacking(config)),
        consul=_consul(wanted),
        server=_server(config, units) if managed and wanted.is_storage else Server(),
        obstacles=tuple(_obstacles(config)) if wanted.is_storage else (),
        there={p: text for p in wanted.texts if (text := places.text(p)) is not None},
        leads=dict(_leads(wanted, places)),
        modes=dict(_modes(wanted, places)),
        token=None if token is None else (places.text(token) or "").strip() or None,
        has_key=places.at(config.replication.ssh_key).exists(),
        running=frozenset(unit for unit in on if managed and units.is_active(unit)),
        enabled=frozenset(
            unit for unit in on if managed and units.enablement(unit).startswith("enabled")
        ),
        answers=managed and _answers(config, units),
        installed=readable(places.at(config.paths.state / NAME)),
        shadowed=tuple(_shadowed(wanted, shipped, places)),
        others=tuple(_others(config)),
        foreign_mount=None if wanted.is_storage else foreign_mount(config, places),
    )


def disk_of(config: Config) -> Path:
    """Returns where the file system of the volume's path is mounted now."""
    return mount_point_of(config.paths.live.parent, read_foreign_text(MOUNTS))


def foreign_mount(config: Config, places: Places) -> str | None:
    """Returns who mounts something at the volume's path already, as far as it isn't a unit of
    ours."""
    for suffix in ("mount", "automount"):
        path = UNITS / unit_name(config.paths.bind, suffix)
        text = places.text(path)
        if text is not None and "Standfast" not in text:
            return str(path)
    rows = [fields_of(line) for line in lines_of(places.text(FSTAB) or "")]
    points = [row[1].rstrip("/") for row in rows if len(row) > 1 and not row[0].startswith("#")]
    return str(FSTAB) if str(config.paths.bind) in points else None


def _lacking(config: Config) -> Iterator[str]:
    needed = ["consul"]
    if config.node in config.nodes:
        needed.append("btrfs")
        if not config.replication.command:
            needed += ["ssh", "ssh-keygen", "sshd"]
    else:
        needed.append("mount.nfs4")
    yield from (name for name in needed if shutil.which(name, path=PATH) is None)
    if config.node in config.nodes and not _has_fence(config):
        yield "ipset" if config.fence.backend == "ipset" else "nft"


def _has_fence(config: Config) -> bool:
    backend = config.fence.backend
    return (backend != "ipset" and nft_works()) or (backend != "nftables" and ipset_installed())


def gateway(config: Config, token: str | None) -> ConsulGateway:
    """Returns Consul, asked with the token that was given, as its file may not be there yet."""
    if token is None:
        return ConsulGateway.from_config(config, timeout_s=PATIENT_S)
    access = replace(config.consul, token_file=None)
    environ = dict(TAKEN) | {"CONSUL_HTTP_TOKEN": token}
    config = replace(config, consul=access)
    return ConsulGateway.from_config(config, timeout_s=PATIENT_S, environ=environ)


def _consul(wanted: Wanted) -> InConsul:
    token = wanted.config.consul.token_file
    if wanted.token is None and token is not None and not token.exists():
        return InConsul(wanted.config.node)  # `token` says what is missing
    try:
        consul = gateway(wanted.config, wanted.token)
        name = ""
        if wanted.is_storage:  # a client's token may be allowed neither
            name = consul.node_name()
            consul.self_check()
        leader = leader_of(wanted.config, consul)
        return InConsul(name, None, None if leader is None else leader.holder.node)
    except StandfastError as error:
        return InConsul(trouble=str(error))


def _server(config: Config, units: SystemdUnits) -> Server:
    unit = config.nfs.unit
    own = OwnEpoch.load(config.state_dir) is not None
    others = config.nfs.server != "kernel" or exports_anything(
        *files_of_others(ETC, own_file(config))
    )
    return Server(units.enablement(unit), units.is_active(unit), others, own)


def _obstacles(config: Config) -> Iterator[Obstacle]:
    """By the judges that a replication and a promotion go by."""
    live = config.paths.live
    try:
        if live.exists() and btrfs_info.read(live) is None:
            fix = f"mv {live} {live}.old; btrfs subvolume create {live}; cp -a --reflink=auto " \
                  f"{live}.old/. {live}/"  # fmt: skip
            yield Obstacle("disk", f"{live} is no btrfs subvolume", fix)
        for problem in storage_problems(facts_here(config, open_store(config))):
            if problem.check != "tools":  # said already
                weight = Weight.BARS if problem.grave and not problem.lasts else Weight.TOLD
                yield Obstacle(problem.check, problem.evidence, problem.fix, weight)
    except (StandfastError, OSError) as error:
        fix = f"mount the volume's disk, or correct [paths] in {config.source}"
        yield Obstacle("disk", str(ours(error)), fix)
    try:
        yield from parts().nfs(config).obstacles()
    except (StandfastError, OSError) as error:
        fix = f"`systemctl status {config.nfs.unit}`"
        yield Obstacle("server", f"not known: {ours(error)}", fix, Weight.TOLD)
    if config.nfs.server == "ganesha":
        yield from _ganesha(config)


def _ganesha(config: Config) -> Iterator[Obstacle]:
    directory, main = config.nfs.ganesha_exports, config.nfs.ganesha_exports.parent / "ganesha.conf"
    try:
        text = read_foreign_text(main)
    except OSError:
        return  # its configuration is elsewhere
    if str(directory) not in text:
        evidence = f"{main} doesn't include {directory}: nothing would be exported"
        yield Obstacle("exports", evidence, f"a line in it: %dir {directory}")


def _leads(wanted: Wanted, places: Places) -> Iterator[tuple[Path, str]]:
    for link in wanted.links:
        at = places.at(link)
        if at.is_symlink():
            yield link, str(at.readlink())
        elif at.exists():
            yield link, ""


def _modes(wanted: Wanted, places: Places) -> Iterator[tuple[Path, int]]:
    mounts = parse_mountinfo(read_foreign_text(MOUNTS))
    for path in wanted.directories:
        at = places.at(path)
        if mounted_at(mounts, at) is not None:
            yield path, 0o040755
        elif os.path.lexists(at):
            yield path, at.stat().st_mode


def _answers(config: Config, units: SystemdUnits) -> bool:
    if config.node not in config.nodes:
        return units.is_active(f"standfast-watch@{config.volume}.service")
    return agent_answers(config)


def agent_answers(config: Config) -> bool:
    """Tells whether the volume's agent has made its first look."""
    try:
        ask(config.run_dir / "agent.sock", {"v": 1, "command": "status"}, Deadline.after(ASK_S))
    except StandfastError:
        return False
    return True


def _shadowed(wanted: Wanted, shipped: Shipped, places: Places) -> Iterator[Path]:
    names: Sequence[str] = sorted(shipped.by_package)
    for name in names:
        if wanted.is_storage or name in CLIENT_UNITS:
            path = UNITS / name
            if places.at(path).is_file():
                yield path


def _others(config: Config) -> Iterator[str]:
    """What two volumes of one node would be in each other's way with."""
    for path in _files(config.source.parent):
        if path == config.source:
            continue
        try:
            other = load(path, require_storage=False)
        except ConfigError as error:
            yield str(error)
            continue
        yield from (str(problem) for _, problem in check_together([other, config]))


def _files(directory: Path) -> Sequence[Path]:
    try:
        return config_files(directory)
    except ConfigError:
        return ()
