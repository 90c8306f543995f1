"""One function for each step of a client's plan. Each can be repeated; each has a deadline.

Invariant: nothing here decides. What is unmounted is looked at once more right before: only NFS
mounts of the volume go, never the automount below them or what somebody else put there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from standfast.clients import dependants, notes
from standfast.clients.decide import Decision
from standfast.clients.observation import Answer, Note, Observed, Server
from standfast.clients.plan import Do, Step
from standfast.clients.ports import Mounts, MountUnits, Processes
from standfast.clients.units import nfs_source
from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.system.clock import Deadline
from standfast.system.mountinfo import Mount, canonical, elsewhere, mounted_at, part_of, stack_at

log = logging.getLogger(__name__)

MOUNT_S = 10.0
"""For one attempt to mount or unmount."""
PROBE_S = 5.0
"""A mount that doesn't answer for this long hangs."""
# More mounts on top of each other than this are somebody's loop.
MOST_LAYERS = 16
# retry=0: mount.nfs would go on for 2 min with the address that it began with.
ALWAYS = "retry=0"


@dataclass(slots=True)
class Steps:
    """The steps of one plan on this machine; `said` is for the journal and the command line."""

    config: Config
    decision: Decision
    observed: Observed
    mounts: Mounts
    units: MountUnits
    processes: Processes
    hooks: Sequence[dependants.Hook]
    still_client: Callable[[], bool]
    """False when this node has a role by now."""
    said: list[str] = field(default_factory=list)
    _woken: bool = False
    """Who waited for the old server has got an error, by whatever mount of it."""

    def table(self) -> Mapping[Do, Callable[[Step], None]]:
        client = self.config.client
        return {
            Do.LIST_USERS: lambda _: self.list_users(),
            Do.BEFORE_CHANGE: lambda _: self._run("client.before_change", client.before_change),
            Do.LET_GO: lambda _: self.let_go(),
            Do.MOUNT: lambda _: self.mount(),
            Do.END_MOUNTING: lambda _: self.units.end_mounting(self._path, self._deadline()),
            Do.VERIFY: lambda _: self.verify(),
            Do.NOTE: lambda _: self.note(),
            Do.REBIND: lambda step: self.rebind(Path(step.target)),
            Do.RESTART: lambda _: self.said.extend(dependants.restart(self.config, self.units)),
            Do.ON_CHANGE: lambda _: self._run("client.on_change", client.on_change),
            Do.HOOKS: lambda _: self.said.extend(
                dependants.call_hooks(self.config, self.hooks, self._change())
            ),
        }

    @property
    def _path(self) -> Path:
        return self.config.paths.bind

    def _deadline(self) -> Deadline:
        return Deadline.after(MOUNT_S)

    def _server(self) -> Server:
        if self.decision.server is None:
            raise StandfastError(f"there is no server to mount {self._path} from")
        return self.decision.server

    def _change(self) -> dependants.Change:
        server, config = self.decision.server, self.config
        address = config.me.address if server is None else server.address
        epoch = 0 if server is None else server.epoch
        return dependants.Change(config.volume, self._path, address, epoch)

    def _top(self) -> Mount | None:
        return mounted_at(self.mounts.here(), self._path)

    def _run(self, option: str, commands: Sequence[str]) -> None:
        self.said += dependants.run_commands(self.config, option, commands, self._change())

    def list_users(self) -> None:
        """Lists who has it open, before the mount goes: its files show no path afterwards."""
        old = [mount for mount in self.observed.stack if mount.is_nfs]
        for use in self.processes.users(self._path, {mount.id for mount in old}):
            who = f"{use.name} (pid {use.pid}{f', {use.unit}' if use.unit else ''})"
            self.said.append(f"{who} has {use.target} of the old mount open: restart it")
        for mount in self.observed.elsewhere:
            if mount.point not in self.config.client.binds:
                self.said.append(
                    f"the bind mount at {mount.point} stays on the old server: make it again, or "
                    f"name it in client.binds"
                )
        devices = {mount.device for mount in old}
        for space in self.mounts.namespaces():
            points = sorted({mount.point for mount in space.mounts if mount.device in devices})
            if points:
                who = ", ".join(space.units) or f"pid {', '.join(map(str, space.pids))}"
                self.said.append(f"{who} keeps the old mount at {', '.join(points)} in a mount "
                                 "namespace of its own: restart it")  # fmt: skip

    def let_go(self) -> None:
        """Takes away every NFS mount at the path, from the top; nothing else."""
        for _ in range(MOST_LAYERS):
            top = self._top()
            if top is None or not top.is_nfs:
                return
            if self.decision.server is not None:
                stack = stack_at(self.mounts.here(), self._path)
                notes.note_let_go(self.config.run_dir, [mount for mount in stack if mount.is_nfs])
            self.mounts.let_go(self._path, self._deadline())
            self._woken = True
        raise StandfastError(f"more than {MOST_LAYERS} mounts lie on top of each other at {top}")

    def mount(self) -> None:
        """Mounts by the address that Consul names, not by DNS, which may be late or away."""
        server, top = self._server(), self._top()
        if top is not None and top.is_nfs:
            if canonical(top.address or "") in server.addresses:
                return  # an automount was quicker
            self.let_go()
        if self._top() is None:
            self._path.mkdir(parents=True, exist_ok=True)
        # Sorted, so that each attempt has the same one of several; IPv4 before IPv6.
        address = min(server.addresses, key=lambda text: (":" in text, text))
        source = nfs_source(address, self.config.paths.live)
        self.mounts.mount(source, self._path, self._options(), self._deadline())
        if not self.still_client():
            # Promoted meanwhile: the agent's bind mount has to be what is seen.
            self.let_go()
            raise StandfastError(f"this node has the role now: {self._path} is the agent's")

    def _options(self) -> str:
        options = self.units.options(self._path) or self.config.client.mount_options
        words = [word for word in options.split(",") if word != ALWAYS]
        if self.config.nfs.port != 2049 and not any(w.startswith("port=") for w in words):
            words.append(f"port={self.config.nfs.port}")
        return ",".join([*words, ALWAYS])

    def verify(self) -> None:
        server, top = self._server(), self._top()
        if top is None or not top.is_nfs or canonical(top.address or "") not in server.addresses:
            what = "nothing" if top is None else f"{top.kind} {top.source}"
            raise StandfastError(
                f"{self._path} was mounted from {server.address}, and {what} is what is seen there"
            )
        deadline = Deadline.after(PROBE_S)
        answer, detail = self.mounts.probe(self._path, deadline)
        if answer is not Answer.ANSWERS:
            raise StandfastError(
                f"{self._path} is mounted from {server.address} and {answer} ({detail})"
            )

    def note(self) -> None:
        top, server = self._top(), self.decision.server
        if top is None or (server is not None) != top.is_nfs:
            return  # somebody has changed it again: the next look sees to it
        if server is None:
            note = Note("bind", "", None, 0, top.id, top.device)
        else:
            address = top.address or server.address
            note = Note(
                "nfs", address, server.fsid, server.epoch, top.id, top.device, confirmed=True
            )
        notes.save(self.config.run_dir, note)

    def rebind(self, target: Path) -> None:
        """Makes another mount of a part of the volume; what failed doesn't keep the others from
        it."""
        try:
            self._rebind(target)
            self.said.append(f"made the bind mount at {target} again")
        except StandfastError as error:
            self.said.append(f"the bind mount at {target} still shows the old server: {error}")

    def _rebind(self, target: Path) -> None:
        current = self._top()
        export = str(self.config.paths.live)
        layers = stack_at(elsewhere(self.mounts.here(), self._path, export), target)
        if current is None or not current.is_nfs or not layers:
            return
        inside, base = part_of(layers[-1], export), part_of(current, export)
        if inside is None or base is None or not inside.is_relative_to(base):
            raise StandfastError(f"it shows {layers[-1].source}, which is no part of {self._path}")
        for _ in layers:
            top = mounted_at(self.mounts.here(), target)
            if top is None or not top.is_nfs:
                break
            self.mounts.let_go(target, self._deadline(), wake=not self._woken)
        self.mounts.bind(self._path / inside.relative_to(base), target, self._deadline())
