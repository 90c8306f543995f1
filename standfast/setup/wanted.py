"""What a node is to have: files, links, directories, units. Pure, made from its configuration and
from what is shipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from standfast.clients.units import unit_files, unit_name
from standfast.config.model import Config, Nfs, Paths
from standfast.setup.shipped import CATALOG, GUARD, PROGRAMS, UNITS, Shipped
from standfast.system.lines import lines_of

CLIENT_UNITS = ("standfast-watch@.service", "standfast-resync.service", "standfast-resync.timer")
DEFAULT_SERVER = "nfs-server.service"
DISK = Path("/persist")
"""Where the shipped units expect the volume's disk."""
_KEPT = Path("/var/lib/standfast"), Path("/run/standfast")
"""Where they expect state and sockets."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Everything by where it belongs, and in no order."""

    config: Config
    """With the place where its file belongs as `source`."""
    text: str
    """Of that file."""
    token: str | None
    """The ACL token that was given; None: none was."""
    units: Mapping[Path, str]
    """Unit files and drop-ins."""
    catalog: Mapping[Path, str]
    pages: Mapping[Path, str]
    links: Mapping[Path, Path]
    directories: Mapping[Path, int]
    """With the mode of one that is made."""
    started: tuple[str, ...]
    """Units that are enabled and started, in this order."""
    enabled: tuple[str, ...] = ()
    """Units that are enabled alone."""
    complete: bool = True
    """The installation has what this kind of node needs."""

    @property
    def is_storage(self) -> bool:
        return self.config.node in self.config.nodes

    @property
    def texts(self) -> Mapping[Path, str]:
        """Returns every file that is written, but for the token."""
        return {self.config.source: self.text, **self.units, **self.catalog, **self.pages}


def wanted(
    config: Config,
    text: str,
    token: str | None,
    shipped: Shipped,
    disk: Path,
    *,
    mounts: bool,
) -> Wanted:
    """Returns what this node is to have. `disk`: where the file system of the volume's path is
    mounted; `mounts`: a client's path has no mount unit or line of fstab of somebody else."""
    storage = config.node in config.nodes
    names = [name for name in shipped.units if storage or name in CLIENT_UNITS]
    units = {UNITS / name: shipped.units[name] for name in names if name not in shipped.by_package}
    if storage:
        units |= {UNITS / name: drop for name, drop in drop_ins(config, shipped, disk)}
        directories = {config.paths.standby: 0o700, config.paths.bind: 0o755}
        if config.nfs.server == "ganesha":
            directories[config.nfs.ganesha_exports] = 0o755
        started: tuple[str, ...] = storage_units(config.volume)
    else:
        own = unit_files(config) if mounts else {}
        units |= {UNITS / name: each for name, each in own.items()}
        directories = {config.paths.bind: 0o755}
        automount = [name for name in own if name.endswith(".automount")]
        started = (*automount, f"standfast-watch@{config.volume}.service", "standfast-resync.timer")
    follows_jobs = storage and config.nomad.enabled
    enabled = (f"standfast-nomad@{config.volume}.service",) if follows_jobs else ()
    return Wanted(
        config,
        text,
        token,
        units,
        {CATALOG: shipped.catalog} if shipped.catalog and not shipped.by_package else {},
        shipped.pages,
        {PROGRAMS / name: path for name, path in shipped.programs.items()},
        directories,
        started,
        enabled,
        complete=not storage or GUARD in shipped.units,
    )


def storage_units(volume: str) -> tuple[str, ...]:
    """Returns what is enabled on a storage node: the socket before the first snapshot comes."""
    return (
        "standfast-receive.socket",
        f"standfast-agent@{volume}.service",
        f"standfast-watch@{volume}.service",
        "standfast-resync.timer",
        "standfast-exporter.service",
    )


def drop_ins(config: Config, shipped: Shipped, disk: Path) -> Iterator[tuple[str, str]]:
    """Yields what the shipped units need beside them where the configuration differs from what they
    expect; their names have the volume's where they are for it alone."""
    volume, paths, nfs = config.volume, config.paths, config.nfs
    if nfs.unit != DEFAULT_SERVER and GUARD in shipped.units:
        yield f"{nfs.unit}.d/standfast.conf", _guard(shipped.units[GUARD], nfs)
        text = f"[Unit]\nConflicts={nfs.unit}\nAfter={nfs.unit}\n"
        yield f"standfast-lost@{volume}.service.d/standfast-server.conf", text
    if disk not in (DISK, Path("/")):
        unit = unit_name(disk, "mount")
        text = f"[Unit]\nWants={unit}\nAfter={unit}\n"
        yield f"standfast-agent@{volume}.service.d/standfast-disk.conf", text
        for name in ("standfast-replicate@", "standfast-verify@"):
            text = f"[Unit]\nRequiresMountsFor={_escaped(disk)}\n"
            yield f"{name}.service.d/standfast-{volume}.conf", text
    if places := _written(paths, nfs):
        text = f"[Service]\nReadWritePaths={' '.join(f'-{_escaped(place)}' for place in places)}\n"
        for name in ("standfast-lease@", "standfast-lost@"):
            yield f"{name}{volume}.service.d/standfast-paths.conf", text
    if paths.run != _KEPT[1]:
        mark = _escaped(paths.run / volume / "nothing-held")
        text = f"[Unit]\nConditionPathExists=\nConditionPathExists=!{mark}\n"
        yield f"standfast-ended@{volume}.service.d/standfast-run.conf", text
    if paths.live.is_relative_to("/home") or paths.standby.is_relative_to("/home"):
        for name in ("standfast-receive", "standfast-replicate@", "standfast-verify@"):
            text = "[Service]\nProtectHome=no\n"
            yield f"{name}.service.d/standfast-{volume}-home.conf", text


def _guard(shipped: str, nfs: Nfs) -> str:
    """Returns the guard's drop-in for another server's unit; nfs-ganesha reads no exports(5)."""
    if nfs.server != "ganesha":
        return shipped
    lines = [line for line in lines_of(shipped) if "exportfs" not in line]
    return "\n".join(line for line in lines if line != "ExecStartPre=") + "\n"


def _written(paths: Paths, nfs: Nfs) -> list[Path]:
    """Returns where the lease process writes beyond what its unit permits."""
    places = [path for path, kept in zip((paths.state, paths.run), _KEPT, strict=True)
              if not path.is_relative_to(kept)]  # fmt: skip
    exports = nfs.ganesha_exports
    if nfs.server == "ganesha" and not exports.is_relative_to("/etc/ganesha"):
        places.append(exports)
    return places


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")
