"""The product on a lab: its configuration, and its own words about itself.

Helpers read as words; times are the host's monotonic seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from tests.labs.shared.lab import Machines
from tests.labs.shared.node import Machine
from tests.support.commands import LabError

N = TypeVar("N", bound=Machine)
VOLUME = "data-services"
PRIMARY = "n1"
EXPORT = "/persist/services"
AGENT = f"standfast-agent@{VOLUME}"
LEASE = f"standfast-lease@{VOLUME}"
UNITS = f"standfast-watch@{VOLUME} standfast-resync.timer"
STEP_FAILED = 4
"""Exit status."""
RECEIVER = "standfast-receive.socket"
"""On storage nodes."""


@dataclass(frozen=True, slots=True)
class Timing:
    """[lease] of the configuration, seconds."""

    heartbeat: float
    request_timeout: float
    length: float
    fence: float
    wait: float


DEFAULT = Timing(2.0, 2.0, 8.0, 2.0, 12.0)
FAST = Timing(0.5, 0.5, 2.0, 1.0, 4.1)


class Installed(Generic[N]):
    """A lab with Standfast on it."""

    server: ClassVar[str]
    """[nfs] server of the configuration."""
    interval_s: ClassVar[int]
    """[replication] interval of the configuration."""

    def __init__(self, lab: Machines[N], timing: Timing, extra: str = "") -> None:
        """`extra`: top-level lines of the configuration."""
        self.lab = lab
        self.timing = timing
        self.extra = extra

    def __getitem__(self, name: str) -> N:
        return self.lab[name]

    @property
    def storage(self) -> list[N]:
        """The nodes that can have the role."""
        return [self.lab[name] for name in self.lab.storage]

    # -- configuration -------------------------------------------------------------------

    def configuration(self, node: N) -> str:
        """A node's /etc/standfast/data-services.toml; only storage nodes are in [nodes], and a
        client goes by its host name."""
        lab, timing = self.lab, self.timing
        addresses = ["127.0.0.1:8500", *(f"{n.address}:8500" for n in lab if n is not node)]
        nodes = "".join(
            f'[nodes.{n.name}]\naddress = "{n.address}"\npriority = {100 - index}\n'
            for index, n in enumerate(self.storage)
        )
        own = f'node = "{node.name}"\n' if node.name in lab.storage else ""
        return f"""\
cluster = "lab"
{own}preferred = "{PRIMARY}"
{self.extra}
[lease]
heartbeat = {timing.heartbeat}
request_timeout = {timing.request_timeout}
length = {timing.length}
fence = {timing.fence}
wait = {timing.wait}
[consul]
addresses = {json.dumps(addresses)}
[nfs]
server = "{self.server}"
clients = ["192.168.1.0/24"]
[replication]
interval = {self.interval_s}
ssh_key = "/root/.ssh/id_ed25519"
{nodes}"""

    def configure(self, node: N, more: str = "") -> None:
        """Write a node's configuration; `more`: tables after the common ones."""
        node.write(f"/etc/standfast/{VOLUME}.toml", self.configuration(node) + more)

    def start_units(self, node: N, units: str) -> None:
        """Enable and start units, the agent's among them.

        A machine may be too slow for the unit's own TimeoutStartSec: systemd starts it again.
        """
        node.sh(f"systemctl enable -q --now --no-block {units}")
        pace = self.lab.pace
        node.wait_for(
            lambda: node.is_active(AGENT), pace.product_s, f"{AGENT} is active", pace.pause_s
        )

    def promote_first(self) -> None:
        """n1 becomes the first primary.

        On a slow machine a step may pass the product's own deadline: its agent takes it up again,
        or has undone it and is asked again.
        """
        self[PRIMARY].run("btrfs", "subvolume", "create", EXPORT)
        within_s = self.lab.pace.product_s

        def promoted() -> bool:
            done = self[PRIMARY].run("standfast", "promote", timeout_s=within_s, check=False)
            # What it says of an attempt that failed on the way is not its end.
            said = done.stdout + done.stderr
            if done.returncode and "already-primary" in said:
                return "going on with it" not in said
            if done.returncode != STEP_FAILED:
                done.checked()
            return True

        self.lab.wait_for(promoted, within_s, "the first promotion", self.lab.pace.pause_s)
        self.wait_for_role(PRIMARY, "primary")

    # -- the product's own words ---------------------------------------------------------

    def standfast(
        self, name: str, *argv: str, timeout_s: float | None = None, check: bool = True
    ) -> str:
        """Output of the standfast command on a node, both streams."""
        within_s = self.lab.pace.product_s if timeout_s is None else timeout_s
        done = self[name].run("standfast", *argv, timeout_s=within_s, check=check)
        return done.stdout + done.stderr

    def status(self, name: str) -> Mapping[str, Any]:
        """`standfast status --json` on a node; exit 1 (nobody serves) is an answer."""
        done = self[name].run("standfast", "status", "--json", check=False)
        try:
            doc = json.loads(done.stdout)
        except ValueError as error:
            raise LabError(f"{name}: status: {done.stdout}{done.stderr}") from error
        assert isinstance(doc, dict)
        return doc

    def role(self, name: str) -> str:
        """ "unknown" where the command itself has failed: a deadline of the product passed, say."""
        return str(self.status(name).get("role", "unknown"))

    def primary(self) -> str:
        """The node whose role is primary; "" when there is none. More than one is a failure."""
        primaries = [n.name for n in self.storage if n.pid and self.role(n.name) == "primary"]
        assert len(primaries) <= 1, f"two primaries: {primaries}"
        return primaries[0] if primaries else ""

    def epoch(self, ask: str) -> int:
        """What a node's status says, as soon as that node can read it: Consul may be silent."""
        return self.lab.wait_for(
            lambda: int(self.status(ask).get("epoch") or 0),
            self.lab.pace.product_s,
            f"{ask} knows the epoch",
        )

    # -- what takes its time -------------------------------------------------------------

    def wait_for_role(self, name: str, role: str, timeout_s: float | None = None) -> None:
        within_s = self.lab.pace.product_s if timeout_s is None else timeout_s
        self.lab.wait_for(lambda: self.role(name) == role, within_s, f"{name} is {role}")

    def wait_until_replicated(self, name: str, timeout_s: float | None = None) -> float:
        """Every standby that is up gets a snapshot taken after now; returns when that was."""
        within_s = self.lab.pace.product_s if timeout_s is None else timeout_s
        after = time.time()
        up = {n.name for n in self.storage if n.pid} - {name}

        def fresh() -> bool:
            asked = time.time()  # an age is told of a moment after it
            standbys = {s["node"]: s for s in self.status(name).get("standbys", ())}
            return all(
                n in standbys
                and standbys[n]["age_s"] is not None
                and asked - standbys[n]["age_s"] > after
                for n in up
            )

        self.lab.wait_for(fresh, within_s, f"standbys of {name} are fresh", self.lab.pace.pause_s)
        return after

    def bring_up(self) -> None:
        """Every node is up, connected and thawed again, and Consul has a leader."""
        self.lab.heal()
        for node in self.lab:
            node.thaw()
        down = [node for node in self.lab if not node.pid]
        if down:
            self.lab.boot(down)
        self.lab.wait_for_leader()

    def wait_until_settled(self, timeout_s: float) -> None:
        """One primary, the rest standbys."""
        self.lab.wait_for(
            lambda: (
                self.primary() != ""
                and all(self.role(n.name) in ("primary", "standby") for n in self.storage)
            ),
            timeout_s,
            "one primary and standbys",
            self.lab.pace.pause_s,
        )
