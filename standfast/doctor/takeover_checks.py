"""What doctor says of a takeover: each readiness check, by the node that would serve, as it is now.

On a standby its own agent looks; on the primary each standby's agent is asked. Invariant: nothing
is judged here, and what can't be asked is a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec import ValidationError, convert

from standfast.assembly.parts import open_store
from standfast.config.model import Config
from standfast.consul.gateway import PATIENT_S, ConsulGateway
from standfast.doctor.finding import Finding
from standfast.errors import StandfastError, Unreachable
from standfast.node.obstacle import Obstacle, Weight
from standfast.replication.cycle import Sender
from standfast.status.document import Status
from standfast.system.clock import Deadline
from standfast.system.local_socket import ask
from standfast.system.threads import all_at_once

ASK_S = 45.0


def look(config: Config, status: Status | None) -> list[Finding]:
    """Looks at this node, or from the primary at every standby; nothing on a node that is
    neither."""
    if config.node not in config.nodes or status is None or status.agent is not True:
        return []
    if status.holder != config.node:
        return examine(_here(config), config.node)
    looks = [partial(_there, config, name) for name in config.standbys]
    return [finding for findings in all_at_once("takeover", looks) for finding in findings]


def examine(obstacles: Sequence[Obstacle], node: str) -> list[Finding]:
    """Makes a finding of each; what is only told is no failure. Pure."""
    if not obstacles:
        return [Finding("ready", True, "nothing is in the way of a promotion", "", node)]
    return [
        Finding(seen.check, seen.weight is Weight.TOLD, seen.evidence, seen.fix, node)
        for seen in obstacles
    ]


def _here(config: Config) -> Sequence[Obstacle]:
    path = config.run_dir / "agent.sock"
    try:
        reply = ask(path, {"v": 1, "command": "inspect"}, Deadline.after(ASK_S))
        return convert(reply.get("obstacles"), tuple[Obstacle, ...])
    except (StandfastError, ValidationError) as error:
        fix = f"systemctl restart standfast-agent@{config.volume} (what is served goes on)"
        return [Obstacle("inspection", f"the agent doesn't say: {error}", fix)]


def _there(config: Config, name: str) -> list[Finding]:
    try:
        consul = ConsulGateway.from_config(config, timeout_s=PATIENT_S)
        sender = Sender(config, open_store(config), consul)
        return examine(sender.inspect(name, Deadline.after(ASK_S)), name)
    except Unreachable:
        return []  # the group `replication` says why
    except StandfastError as error:
        fix = f"`standfast doctor` on {name}"
        return [Finding("inspection", False, f"it doesn't say: {error}", fix, name)]
