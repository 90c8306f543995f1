"""`standfast doctor`: all checks in one list, by groups, each with cause, evidence and fix.

Invariants: a check that fails itself, or doesn't end, is a finding; the whole has one deadline; the
names of groups, checks and JSON keys are an interface (docs/doctor.md).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from standfast.agent.document import fetch
from standfast.config.model import Config
from standfast.doctor import node_checks, standby_checks, storage_checks
from standfast.doctor.causes import CAUSES
from standfast.doctor.client_checks import look as look_at_mounts
from standfast.doctor.finding import Finding
from standfast.doctor.nomad_checks import look as look_at_nomad
from standfast.doctor.service_checks import examine
from standfast.errors import StandfastError
from standfast.system.clock import Deadline

LIMIT_S = 90.0
"""For everything; each look has shorter limits of its own."""
GROUPS = ("service", "storage", "replication", "clients", "nomad", "node")

Look = Callable[[], Sequence[Finding]]


@dataclass(frozen=True, slots=True)
class Listed:
    """A finding in its group, as --json shows it; `cause` and `fix` are empty when all is well."""

    group: str
    check: str
    subject: str
    ok: bool
    cause: str
    evidence: str
    fix: str


def listed(group: str, finding: Finding) -> Listed:
    cause = "" if finding.ok else CAUSES.get((group, finding.check), "")
    return Listed(
        group,
        finding.check,
        finding.subject,
        finding.ok,
        cause,
        finding.evidence,
        "" if finding.ok else finding.fix,
    )


def gather(looks: Mapping[str, Look], deadline: Deadline) -> list[Listed]:
    """All groups at once, in their order; what isn't there by the deadline is said."""
    found: dict[str, list[Finding]] = {}

    def take(group: str, look: Look) -> None:
        try:
            found[group] = list(look())
        except StandfastError as error:
            found[group] = [_not_known(group, str(error))]
        except Exception as error:  # noqa: BLE001  # a finding, not the end of all others
            text = f"the checks failed themselves: {type(error).__name__}: {error}"
            fix = "this is a bug or needs root (sudo); please report it with what is shown here"
            found[group] = [Finding("look", False, text, fix)]

    threads = {
        # Daemons: one that hangs on a dead disk must not keep the others' answer.
        group: threading.Thread(target=take, args=(group, look), name=group, daemon=True)
        for group, look in looks.items()
    }
    for thread in threads.values():
        thread.start()
    for group, thread in threads.items():
        thread.join(deadline.remaining_s())
        if thread.is_alive():
            found[group] = [_not_known(group, "no answer in time: a disk, a mount or a peer hangs")]
    return [listed(group, one) for group in looks for one in found[group]]


def _not_known(group: str, why: str) -> Finding:
    fix = f"put that right, then `standfast doctor` again: nothing is known of {group}"
    return Finding("look", False, f"not known: {why}", fix)


def render(findings: Sequence[Listed]) -> str:
    """A heading for each group, a line for each check, cause and fix below the bad ones."""
    lines: list[str] = []
    for group in dict.fromkeys(one.group for one in findings):
        lines += ["", group] if lines else [group]
        for one in findings:
            if one.group == group:
                lines += _lines(one)
    bad = sum(not one.ok for one in findings)
    return "\n".join([*lines, "", f"{len(findings)} checks, {bad or 'none'} bad"])


def _lines(one: Listed) -> list[str]:
    subject = f"{one.subject}: " if one.subject else ""
    lines = [f"{'ok ' if one.ok else 'BAD'}  {one.check:<9} {subject}{one.evidence}"]
    if one.cause:
        lines.append(f"               {one.cause}")
    if one.fix:
        lines.append(f"               -> {one.fix}")
    return lines


def document(config: Config, findings: Sequence[Listed]) -> dict[str, Any]:
    """What --json prints."""
    return {
        "v": 1,
        "volume": config.volume,
        "node": config.node,
        "ok": all(one.ok for one in findings),
        "findings": [asdict(one) for one in findings],
    }


def looks_of(config: Config) -> dict[str, Look]:
    """Of this node. The service is looked at first: who serves decides what else is asked."""
    doc, service = _service(config)
    serving = doc.get("serving")
    looks: dict[str, Look] = {
        "service": lambda: service,
        "storage": partial(storage_checks.look, config),
        "replication": partial(standby_checks.look, config, doc),
        "clients": partial(look_at_mounts, config),
        "nomad": partial(look_at_nomad, config, serving),
        "node": partial(node_checks.look, config),
    }
    return {group: looks[group] for group in GROUPS}


def _service(config: Config) -> tuple[Mapping[str, Any], list[Finding]]:
    try:
        doc = fetch(config)
    except StandfastError as error:
        fix = f"systemctl restart standfast-agent@{config.volume} (what is served goes on)"
        return {}, [Finding("agent", False, f"no answer: {error}", fix)]
    return doc, examine(doc)
