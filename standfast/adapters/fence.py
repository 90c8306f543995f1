"""The kernel's cut-off of the NFS port, by nftables: without a fresh permit the port is dropped.

The permit is a set element with a kernel timeout, so a frozen process is cut off all the same, and
established connections with it: no request comes in without a permit, and no answer goes out, also
to a request of before its end. All of it lives in a table of its own, which is replaced in one
transaction; nothing else of the firewall is read or changed. A permit is relative to the moment the
kernel takes it: it goes through `exec_before`, so it is never given after `latest`, and the port is
shut by `until + (latest - now)` at the worst.

Several volumes share the one port: each has a claim (a file with the end of its lease), and the
port is open until the least of them. A permit given before a claim was made is taken back when it
is made, so the port is never open for longer than any of the claims says.

The rules are for one port and by one backend, whoever puts them up: see `fence_made`.
"""

from __future__ import annotations

import contextlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from signal import SIGALRM, SIGKILL

from standfast.act.ports import Fence, FenceState, NfsServer
from standfast.adapters.fence_made import MadeFor, refusal
from standfast.clock import Deadline, monotonic
from standfast.config.model import Config
from standfast.errors import CommandFailed, Refused, StandfastError, TimedOut
from standfast.files import read_foreign_text, read_json, write_atomically
from standfast.locks import exclusive
from standfast.reasons import Reason
from standfast.run import TOO_LATE, Completed, exec_before, run

TABLE = "standfast"
COMMAND_S = 2.0
"""Deadline of a command that looks; opening has the caller's."""
BUILD_S = 10.0
"""For putting the rules in place: on a loaded machine a killed command would leave half of them."""
VOID_S = 1.0
"""For another volume's process that is just opening the port: it is quicker, or frozen."""
PROBE_S = 10.0
"""For finding out what the kernel has, once a boot: modules may have to be loaded for it."""


class Claims:
    """Which volumes the port serves, and until when each of their leases runs (monotonic s)."""

    def __init__(self, directory: Path, volume: str, made_for: MadeFor | None = None) -> None:
        self.directory = directory
        self.volume = volume
        self.made_for = made_for
        self._own = directory / f"{volume}.json"

    @contextlib.contextmanager
    def locked(self, by: Deadline) -> Iterator[None]:
        """One volume's process at a time sets the fence, and only as it is made for; Refused."""
        with self.alone(by):
            self.refuse_other()
            yield

    @contextlib.contextmanager
    def alone(self, by: Deadline) -> Iterator[None]:
        """The same for what opens nothing, and touches no rules."""
        with exclusive(self.directory / "lock", "the fence of another volume", by):
            yield

    def refuse_other(self) -> None:
        """Refused when another process has made the fence for something else since this one began:
        putting up ours would take those rules away."""
        known = MadeFor.load(self.directory)
        if known is not None and self.made_for not in (None, known):
            raise Refused(
                Reason.FENCE_NOT_ARMED,
                f"this node's fence shuts {known} by now, and this process goes by "
                f"{self.made_for}: restart it, so that it has the configuration of now",
            )

    def write(self, until: float) -> None:
        try:
            write_atomically(self._own, f'{{"v": 1, "until": {until!r}}}\n')
        except OSError as error:
            raise StandfastError(
                f"the fence's claim {self._own} can't be written ({error}): make room there"
            ) from error

    def void(self) -> None:
        """The own claim, if there is one, has ended: it keeps the port shut until renewed."""
        if self._own.exists():
            self.write(0.0)

    def exists(self) -> bool:
        """Whether the volume has a claim."""
        return self._own.exists()

    def holders(self) -> Sequence[str]:
        """The volumes that have one."""
        return sorted(path.stem for path in self.directory.glob("*.json"))

    def drop(self) -> None:
        """The volume is not exported any more: it has no claim."""
        self._own.unlink(missing_ok=True)

    def least(self) -> tuple[float, str]:
        """End of the first lease to end, and its volume; an unreadable claim has ended."""
        ends = []
        for path in sorted(self.directory.glob("*.json")):
            until = 0.0
            with contextlib.suppress(StandfastError, KeyError, TypeError, ValueError):
                until = float((read_json(path) or {})["until"])
            ends.append((until if math.isfinite(until) else 0.0, path.stem))
        return min(ends)


class KernelFence(ABC):
    """What the backends share: claims, the order of arming, and who may be late."""

    backend = "nftables"

    def __init__(self, port: int, run_dir: Path, volume: str) -> None:
        self.port = port
        self.made_for = MadeFor(port, self.backend)
        self.claims = Claims(run_dir, volume, self.made_for)

    def ensure_closed(self, deadline: Deadline | None = None) -> None:
        """Put the rules in place with the port shut, for every volume until its next `arm`.

        Refused when they are made for another port: what runs there has no other rules.
        """
        deadline = deadline or Deadline.after(BUILD_S)
        self.claims.refuse_other()
        # Shutting waits for nobody: a process frozen with the lock in its hand must not keep the
        # port open. One that is just opening it has counted the claim as it was: shut again after
        # it. A claim that can't be voided ends by itself, with the lease it was for.
        if not self._voided(Deadline.after(0)):
            self._build(deadline)
            self._voided(Deadline.after(VOID_S))
        self._build(deadline)

    def _voided(self, by: Deadline) -> bool:
        """Whether the own claim is over now: nobody opens the port by it any more."""
        with contextlib.suppress(StandfastError, OSError), self.claims.alone(by):
            self.claims.void()
            return True
        return False

    def arm(self, until: float, latest: float) -> bool:
        """Open until `until`; whether the rules had been flushed. See the Fence protocol.

        TimedOut: `latest` passed (nothing was opened after it). Refused: the volume is not
        exported here (a claim made now would outlive it, and nobody would drop it), or another
        volume on this node has no lease. CommandFailed: the rules can't be put in place.
        """
        with self.claims.locked(Deadline(latest)):
            if not self.claims.exists():
                raise Refused(
                    Reason.FENCE_NOT_ARMED,
                    f"{self.claims.volume} is not exported on this node (any more): the port is "
                    f"not opened for it",
                )
            self.claims.write(until)
            end, volume = self.claims.least()
            if end <= monotonic():
                raise Refused(
                    Reason.FENCE_NOT_ARMED,
                    f"the lease of {volume} has run out, and this node exports it: the port stays "
                    f"shut for all volumes until that lease is renewed or {volume} is demoted",
                )
            if self._permit(end, latest):
                return False
            self._build(Deadline(latest))
            if not self._permit(end, latest):
                raise StandfastError(
                    f"the rules for port {self.port} vanish as soon as they are put in place: "
                    f"find out what rewrites this machine's firewall"
                )
            return True

    def claim(self) -> None:
        """Claim the port before the volume is exported.

        A new claim shuts the port, for all volumes, until this one arms: what is open was given
        without it. Shut first: a claim is never there beside a permit that didn't count it.
        """
        deadline = Deadline.after(BUILD_S)
        with self.claims.locked(deadline):
            if not self.claims.exists():
                self._build(deadline)
                self.claims.write(0.0)

    def release(self) -> None:
        """The volume is not exported any more: the others' leases alone keep the port open."""
        with self.claims.alone(Deadline.after(BUILD_S)):
            self.claims.drop()

    def state(self) -> FenceState:
        """What the kernel says now, and whether this volume has a claim to it."""
        return replace(self._state(), claimed=self.claims.exists())

    @abstractmethod
    def _state(self) -> FenceState:
        """What the kernel says now."""

    @abstractmethod
    def _build(self, deadline: Deadline) -> None:
        """Put the rules in place, shut, whatever was there before."""

    @abstractmethod
    def remove(self, deadline: Deadline) -> None:
        """Take the rules of this backend away, for whichever port they are."""

    @abstractmethod
    def _permit(self, until: float, latest: float) -> bool:
        """Renew the permit; False when the rules are not in place."""


def left_for(until: float) -> float:
    """Seconds until `until`; TimedOut when it is over, as nothing must be opened then."""
    left_s = until - monotonic()
    if left_s < 0.001:  # nft's smallest timeout
        raise TimedOut("the lease ran out before the port was opened: it stays shut")
    return left_s


def refuse_late(done: Completed) -> None:
    """Turn the end of an `exec_before` that was not in time into TimedOut."""
    if done.returncode in (TOO_LATE, -SIGALRM, -SIGKILL):
        raise TimedOut(
            "opening the port took too long and was given up; the next heartbeat retries"
        )


class NftFence(KernelFence):
    """nftables; the permit ends to the millisecond (rounded down)."""

    def __init__(self, port: int, run_dir: Path, volume: str, table: str = TABLE) -> None:
        super().__init__(port, run_dir, volume)
        self.table = table

    def _state(self) -> FenceState:
        done = run(
            ["nft", "list", "table", "inet", self.table],
            deadline=Deadline.after(COMMAND_S),
            op="fence:state",
            check=False,
        )
        if done.returncode != 0:
            if "No such file or directory" in done.stderr:
                return FenceState(in_place=False, open_for_s=0.0)
            raise CommandFailed(
                f"nft can't list the table inet {self.table}: {done.stderr.strip()}",
                returncode=done.returncode,
                stderr=done.stderr,
            )
        return parse_table(done.stdout, self.port)

    def _build(self, deadline: Deadline) -> None:
        run(["nft", build_script(self.table, self.port)], deadline=deadline, op="fence:close")

    def remove(self, deadline: Deadline) -> None:
        script = f"add table inet {self.table}; delete table inet {self.table}"
        run(["nft", script], deadline=deadline, op="fence:remove")

    def _permit(self, until: float, latest: float) -> bool:
        done = exec_before(latest, ["nft", self._permit_script(left_for(until))], op="fence:arm")
        refuse_late(done)
        return done.returncode == 0 and parse_table(done.stdout, self.port).in_place

    def _permit_script(self, left_s: float) -> str:
        # An element's timeout can't be changed in old kernels: put it in anew. The first line is
        # there because deleting what isn't there fails; the listing shows that the rules are.
        element = f"element inet {self.table} open"
        return (
            f"add {element} {{ {self.port} timeout 1ms }}; "
            f"delete {element} {{ {self.port} }}; "
            f"add {element} {{ {self.port} timeout {int(left_s * 1000)}ms }}; "
            f"list table inet {self.table}"
        )


def build_script(table: str, port: int) -> str:
    """The table as one transaction: replaced as a whole, with the set empty.

    `input` and `output` see all that this machine's own server takes in and sends, retransmissions
    and resets too. `forward` is for packets of others (another machine, a container with a network
    of its own), none of which reach the server of this network namespace.
    """
    return (
        f"add table inet {table}; delete table inet {table}; "
        f"add table inet {table} {{ "
        f"set open {{ type inet_service; flags timeout; }}; "
        f"chain input {{ "
        f"type filter hook input priority filter - 10; policy accept; "
        f'iif "lo" accept; '
        f"meta l4proto {{ tcp, udp }} th dport {port} th dport != @open drop; "
        f"}}; "
        f"chain output {{ "
        f"type filter hook output priority filter - 10; policy accept; "
        f'oif "lo" accept; '
        f"meta l4proto {{ tcp, udp }} th sport {port} th sport != @open drop; "
        f"}}; }}"
    )


_CHAINS = {"input": ("iif", "dport"), "output": ("oif", "sport")}
_ELEMENT = re.compile(r"\b(?P<port>\d+)(?: timeout \w+)?(?: expires (?P<left>\w+))?")
_UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def parse_table(listing: str, port: int) -> FenceState:
    """The state from nft's listing of the table; anything unexpected is "not in place"."""
    lines = [" ".join(line.split()) for line in listing.splitlines()]
    in_place = not any(line.startswith("flags dormant") for line in lines)
    for hook, (interface, end) in _CHAINS.items():
        rules = _rules_of(hook, lines)
        in_place = (
            in_place
            and len(rules) >= 2
            and rules[0] == f'{interface} "lo" accept'
            and rules[1].endswith(f"th {end} {port} th {end} != @open drop")
        )
    return FenceState(in_place=in_place, open_for_s=_open_for_s(listing, port))


def _rules_of(hook: str, lines: Sequence[str]) -> Sequence[str]:
    """The rules of the chain at that hook, in their order; none without such a chain."""
    starts = [n for n, line in enumerate(lines) if line.startswith(f"type filter hook {hook} ")]
    if len(starts) != 1:
        return ()
    return tuple(takewhile(lambda line: line != "}", filter(None, lines[starts[0] + 1 :])))


def _open_for_s(listing: str, port: int) -> float:
    inside = re.search(r"elements = \{(.*?)\}", listing, re.DOTALL)
    for match in _ELEMENT.finditer(inside[1] if inside else ""):
        if int(match["port"]) == port:
            # No end of its own: put there by hand, and open for ever.
            return math.inf if match["left"] is None else parse_time(match["left"])
    return 0.0


def parse_time(text: str) -> float:
    """Seconds of nft's `1m8s432ms`."""
    parts = re.findall(r"(\d+)(ms|[dhms])", text)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


class FileFence:
    """The demonstration's fence, without root: a file with the end of the permit.

    The embedded NFS server looks at it before each answer. The end is an absolute time of this
    machine's clock, so a late write opens nothing.
    """

    def __init__(self, run_dir: Path, port: int) -> None:
        self.path = run_dir / f"port-{port}.fence"

    def ensure_closed(
        self,
        deadline: Deadline | None = None,  # noqa: ARG002 - a file is written at once
    ) -> None:
        write_atomically(self.path, '{"v": 1, "until": 0.0}\n')

    def arm(self, until: float, latest: float) -> bool:
        missing = not self.state().in_place
        if monotonic() >= min(until, latest):
            raise TimedOut("opening the port took too long, or its lease is over: it stays shut")
        write_atomically(self.path, f'{{"v": 1, "until": {until!r}}}\n')
        return missing

    def claim(self) -> None:
        """Nothing to do: one volume has the port for itself."""

    def release(self) -> None:
        """Nothing to do: one volume has the port for itself."""

    def state(self) -> FenceState:
        with contextlib.suppress(StandfastError, KeyError, TypeError, ValueError):
            doc = read_json(self.path)
            if doc is not None:
                return FenceState(True, max(0.0, float(doc["until"]) - monotonic()))
        return FenceState(in_place=False, open_for_s=0.0)


def nft_works() -> bool:
    """Whether nft is installed and this kernel has what the fence needs; leaves no trace.

    TimedOut when that is not known: a guess would be kept until the next boot, and with the wrong
    backend no port is ever shut.
    """
    probe = f"{TABLE}-probe"
    script = f"{build_script(probe, 2049)}; delete table inet {probe}"
    try:
        run(["nft", script], deadline=Deadline.after(PROBE_S), op="fence:probe")
    except CommandFailed as error:
        # Not being root says nothing about the kernel: let nft itself complain later.
        return "Operation not permitted" in error.stderr
    return True


def fence_from(config: Config) -> Fence:
    """The fence that the configuration names; `auto` is nftables where it works, else ipset."""
    from standfast.adapters.fence_ipset import ipset_installed

    directory = config.paths.run / "fence"
    backend = config.fence.backend
    if backend == "embedded":
        return FileFence(directory, config.nfs.port)
    if backend == "auto":
        backend = _chosen(directory, ipset_installed)
    return _by(backend, config.nfs.port, directory, config.volume)


def _by(backend: str, port: int, directory: Path, volume: str) -> KernelFence:
    from standfast.adapters.fence_ipset import IpsetFence

    return (IpsetFence if backend == "ipset" else NftFence)(port, directory, volume)


def settle(config: Config, fence: Fence, nfs: NfsServer) -> None:
    """At a process's start, before it touches the rules: they are made for what it is configured
    for, from now on if they weren't. InvalidConfig while a server may need those that are there.

    A server is started with a claim only, so without claims and without a server there is none on
    its way either. What the rules are for is noted between taking the old ones away and putting up
    the new ones: cut off anywhere, there is no server, and who goes on puts up what is noted.
    """
    if not isinstance(fence, KernelFence):
        return  # the demonstration's: each port has a file of its own
    directory, own = fence.claims.directory, fence.made_for
    if MadeFor.load(directory) == own:
        return  # waits for nobody
    deadline = Deadline.after(BUILD_S)
    with fence.claims.alone(deadline):
        known = MadeFor.load(directory)
        if known is None:
            own.save(directory)  # the rules that are there, if any, are of this or an older version
        elif known != own:
            why = _in_use(fence.claims, nfs)
            if why is not None:
                raise refusal(config, directory, known, own, why)
            same = known.backend == own.backend
            old = fence if same else _by(known.backend, known.port, directory, config.volume)
            old.remove(deadline)
            own.save(directory)
            fence._build(deadline)


def _in_use(claims: Claims, nfs: NfsServer) -> str | None:
    if holders := claims.holders():
        return f"{', '.join(holders)} is exported here"
    return "an NFS server runs here" if nfs.is_running() else None


def check_settled(config: Config, fence: Fence) -> None:
    """InvalidConfig when the rules are made for something else, for who starts a server: it puts up
    none."""
    if isinstance(fence, KernelFence):
        known = MadeFor.load(fence.claims.directory)
        if known not in (None, fence.made_for):
            why = "only a start of the agent or the lease process changes it, with nothing served"
            raise refusal(config, fence.claims.directory, known, fence.made_for, why)


def _chosen(directory: Path, ipset_installed: Callable[[], bool]) -> str:
    """What `auto` means on this machine: decided once a boot, the same for every process."""
    path = directory / "backend"
    with contextlib.suppress(OSError):
        known = read_foreign_text(path).strip()
        if known in ("nftables", "ipset"):
            return known
    found = "ipset" if not nft_works() and ipset_installed() else "nftables"
    with contextlib.suppress(OSError):  # without root nothing can be fenced anyway
        write_atomically(path, found)
    return found
