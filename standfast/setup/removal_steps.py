"""One function for each step of a removal. Each can be repeated; each has a deadline.

Invariant: nothing here decides, and nothing of btrfs is touched.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from standfast.assembly.parts import parts
from standfast.consul.gateway import PATIENT_S, ConsulGateway
from standfast.errors import Refused, StandfastError
from standfast.fence.choice import take_away
from standfast.mounts.mounts import let_go
from standfast.nfs.foreign_exports import own_file, plain_export_file
from standfast.nfs.kernel import export_line
from standfast.node.own_epoch import OwnEpoch
from standfast.reasons import Reason
from standfast.replication.authorized import revoke
from standfast.replication.authorized_file import authorized_keys_of
from standfast.setup.execute import Act
from standfast.setup.record import NAME, Installed, readable
from standfast.setup.removal import Do, Leaving
from standfast.setup.shipped import Places
from standfast.system.clock import Deadline
from standfast.system.files import write_atomically
from standfast.system.locks import is_locked
from standfast.system.run import run
from standfast.system.systemd import SystemdUnits

COMMAND_S = 30.0
AGENTS = "standfast-agent@"
STOP_S = 90.0
"""For one unit: a remount that is at work is waited for."""


@dataclass(slots=True)
class Effects:
    """The steps on one machine."""

    seen: Leaving
    places: Places
    units: SystemdUnits
    keep_serving: bool = False

    def acts(self) -> Mapping[str, Act]:
        return {
            Do.PLAIN_EXPORT: self.plain_export,
            Do.STOP: self.stop,
            Do.UNMOUNT: self.unmount,
            Do.FENCE: lambda: take_away(self.seen.config, Deadline.after(COMMAND_S)),
            Do.UNEXPORT: self.unexport,
            Do.FILES: self.files,
            Do.BIND: lambda: parts().bind(self.seen.config).mount(Deadline.after(COMMAND_S)),
            Do.NFS_SERVER: self.server,
            Do.LINES: self.lines,
            Do.KEYS: lambda: self._delete(*self.seen.keys),
            Do.CONSUL: self.consul,
            Do.CLUSTER: self.cluster,
            Do.RUN: lambda: self._delete(*self.seen.run, self.seen.config.paths.run),
            Do.STATE: self.state,
        }

    def _delete(self, *paths: Path) -> None:
        """Deletes files, links and whole directories; a directory that all share only when it is
        empty."""
        shared = (self.seen.config.paths.run, self.seen.config.paths.state)
        for path in paths:
            at = self.places.at(path)
            if path in shared or (at.is_dir() and path in self._made()):
                with contextlib.suppress(OSError):  # others have something there
                    at.rmdir()
            elif at.is_dir() and not at.is_symlink():
                shutil.rmtree(at)
            else:
                at.unlink(missing_ok=True)

    def _record(self) -> Path:
        return self.places.at(self.seen.config.paths.state / NAME)

    def _made(self) -> list[Path]:
        return [Path(path) for path in readable(self._record()).directories]

    # Serving

    def plain_export(self) -> None:
        """The same line, with the same fsid: the handles of clients stay good."""
        config, fsid = self.seen.config, self.seen.fsid
        assert fsid is not None, "checked before"
        line = export_line(config, config.paths.live, fsid)
        write_atomically(self.places.at(plain_export_file(config)), line, durable=True)

    def stop(self) -> None:
        """The agent ends first, so that nobody takes over here meanwhile; the lease process last:
        it has the port open until its lease is over. Refused where this node has just got the
        role."""
        agents = [unit for unit in self.seen.units if unit.startswith(AGENTS)]
        for unit in agents:
            self.units.stop(unit, Deadline.after(STOP_S))
        if not self.keep_serving and (role := self._has_the_role()) is not None:
            for unit in agents:
                self.units.start(unit, Deadline.after(STOP_S))
            raise Refused(
                Reason.SERVING,
                f"this node has become the primary meanwhile ({role}): `standfast switchover`, or "
                f"demote, first",
            )
        for unit in self.seen.units:
            with contextlib.suppress(StandfastError):  # an instance whose file is gone already
                self.units.disable([unit], Deadline.after(COMMAND_S))
            if unit.endswith(".mount"):
                continue  # of a dead server: `unmount` waits for nobody
            self.units.stop(unit, Deadline.after(STOP_S))
            self.units.reset_failed(unit, Deadline.after(COMMAND_S))

    def _has_the_role(self) -> str | None:
        config = self.seen.config
        try:
            own = OwnEpoch.load(config.state_dir)
        except StandfastError as error:
            return str(error)
        if own is not None:
            return f"epoch {own.epoch}"
        return "its lease process runs" if is_locked(config.run_dir / "lease.lock") else None

    def unmount(self) -> None:
        config = self.seen.config
        if self.seen.mounted == "bind":
            parts().bind(config).unmount(Deadline.after(STOP_S))
        else:
            let_go(config.paths.bind, Deadline.after(COMMAND_S), Path("/proc"))

    def unexport(self) -> None:
        config = self.seen.config
        if not self.keep_serving:
            parts().nfs(config).unexport()
            return
        # The plain line is in force before this one goes: nothing is refused in between.
        self.places.at(own_file(config)).unlink(missing_ok=True)
        run(["exportfs", "-r"], deadline=Deadline.after(COMMAND_S), op="exportfs:plain")

    def files(self) -> None:
        for path in self.seen.files:
            at = self.places.at(path)
            at.unlink(missing_ok=True)
            if at.parent.name.endswith(".d"):
                with contextlib.suppress(OSError):
                    at.parent.rmdir()
        self.units.daemon_reload(Deadline.after(COMMAND_S))

    def server(self) -> None:
        unit = self.seen.config.nfs.unit
        names = list(self.seen.was_enabled)
        if self.keep_serving and unit not in names:
            names.append(unit)
        self.units.enable(names, Deadline.after(COMMAND_S))
        if self.keep_serving:
            self.units.start(unit, Deadline.after(STOP_S))

    # Rights

    def lines(self) -> None:
        config = self.seen.config
        user = config.replication.ssh_user
        revoke(authorized_keys_of(user), user, None if self.seen.last else config.volume)

    # Consul

    def consul(self) -> None:
        config = self.seen.config
        if self.seen.consul.trouble is not None:
            raise StandfastError(self.seen.consul.trouble)
        gateway = ConsulGateway.from_config(config, timeout_s=PATIENT_S)
        gateway.deregister(config.service_id)
        for key in self.seen.consul.own:
            gateway.delete(key)

    def cluster(self) -> str:
        config = self.seen.config
        gateway = ConsulGateway.from_config(config, timeout_s=PATIENT_S)
        count = 0
        for prefix in (config.key(""), config.client_key("")):
            for entry in gateway.get_many(prefix):
                gateway.delete(entry.key)
                count += 1
        return f"{count} keys of {config.volume} were deleted"

    # Last

    def state(self) -> None:
        """The record after what it tells of, and the configuration, by which this is run again,
        last of all."""
        config, record = self.seen.config, self.seen.config.paths.state / NAME
        made = self._made()
        wrote = readable(self._record())
        later = (record, config.source)
        self._delete(*(path for path in self.seen.state if path not in later))
        for path in made if self.seen.last else ():
            with contextlib.suppress(OSError):  # there is something in it, or on it
                self.places.at(path).rmdir()
        self._put_configuration_away(wrote)
        if self.seen.last:
            self._delete(record, config.paths.state)

    def _put_configuration_away(self, wrote: Installed) -> None:
        """One that setup wrote is on the other nodes, or was made by it; another's is kept."""
        source = self.seen.config.source
        at, text = self.places.at(source), self.places.text(source)
        if text is None:
            return
        if wrote.wrote(source, text):
            at.unlink()
        else:
            at.rename(at.with_name(f"{at.name}.uninstalled"))
        with contextlib.suppress(OSError):
            at.parent.rmdir()
