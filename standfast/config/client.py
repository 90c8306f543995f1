"""The table [client] of the configuration."""

# No `from __future__ import annotations`: as texts they would be compiled anew at each start.
from msgspec import Struct

from standfast.config.fields import option

INERT = ("nosuid", "nodev")
"""Mount options with which nobody gets anywhere by what somebody else put into the volume: root of
a client may put a set-uid program there, or a device node."""


class Client(Struct, frozen=True, kw_only=True):
    """[client]: how a node that mounts the volume follows it from server to server."""

    manage: str = option(
        "auto",
        "auto: where a mount or automount unit exists for paths.bind (fstab counts), or NFS is "
        "mounted there; always: everywhere; never: doctor looks, nothing is done",
        choices=("auto", "always", "never"),
    )
    name: str = option(
        "",
        "Host name in the units; empty: SERVICE.service.consul",
        form="address or empty",
    )
    options: str = option(
        "vers=4.2,hard",
        "Mount options where no unit gives any; never soft, and NFS 4.1 at least",
        form="word",
    )
    nosuid: bool = option(
        True,
        "Set-uid programs and device nodes of the volume do nothing where it is mounted (nosuid, "
        "nodev), on the primary as well; false if your jobs need them. A mount unit's own options "
        "are left as they are",
    )
    spread: float = option(
        2.0,
        "Clients that have to mount anew begin within this time, each at its own point of it; "
        "about 1 s for 200 clients",
        unit="s",
        least=0.0,
        most=30.0,
    )
    binds: tuple[str, ...] = option(
        (),
        "Bind mounts of parts of the volume (their targets) that are made again on the new mount",
        form="path",
    )
    restart_dependants: bool = option(
        True,
        "Restart the active services whose RequiresMountsFor= names the volume's path; false if "
        "they tolerate a change of server",
    )
    restart_units: tuple[str, ...] = option(
        (), "Services that are restarted beside those, if they are active", form="unit"
    )
    before_change: tuple[str, ...] = option(
        (),
        "Shell commands run before the old mount goes, to stop or signal who uses it; the "
        "environment as for on_change",
    )
    on_change: tuple[str, ...] = option(
        (),
        "Shell commands run after a change, with STANDFAST_VOLUME, _PATH, _ADDRESS and _EPOCH set",
    )
    command_timeout: float = option(
        30.0,
        "Deadline of the restarts together, and of each command; raise it for slow services",
        unit="s",
        least=1.0,
    )

    @property
    def inert(self) -> tuple[str, ...]:
        """Returns the mount options that `nosuid` stands for."""
        return INERT if self.nosuid else ()

    @property
    def mount_options(self) -> str:
        """Returns the options of an NFS mount; what `options` has itself goes before."""
        return ",".join((*self.inert, self.options))
