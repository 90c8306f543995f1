"""`standfast doctor`: all checks in one list, by groups, each with cause, evidence and fix.

Invariants: a check that fails itself, or doesn't end, is a finding; the whole has one deadline; the
names of groups, checks and JSON keys are an interface (docs/doctor.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from standfast.agent.document import fetch
from standfast.config.model import Config
from standfast.doctor import node_checks, standby_checks, storage_checks, takeover_checks
from standfast.doctor.causes import CAUSES
from standfast.doctor.client_checks import look as look_at_mounts
from standfast.doctor.finding import Finding
from standfast.doctor.nomad_checks import look as look_at_nomad
from standfast.doctor.service_checks import examine
from standfast.errors import StandfastError
from standfast.status.document import Status
from standfast.system.clock import Deadline
from standfast.system.threads import Question

LIMIT_S = 90.0
"""For everything; each look has shorter limits of its own."""
GROUPS = ("service", "storage", "replication", "takeover", "clients", "nomad", "node")

Look = Callable[[], Sequence[Finding]]


@dataclass(frozen=True, slots=True)
class Listed:
    """Holds a finding in its group, as --json shows it; `cause` and `fix` are empty when all is
    well."""

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
    """Looks at all groups at once; what isn't there by the deadline is said."""
    questions = {group: Question(group, look) for group, look in looks.items()}
    return [
        listed(group, finding)
        for group, question in questions.items()
        for finding in _findings(group, question, deadline)
    ]


def _findings(
    group: str, question: Question[Sequence[Finding]], deadline: Deadline
) -> Sequence[Finding]:
    try:
        return question.answer(deadline, "no answer in time: a disk, a mount or a peer hangs")
    except StandfastError as error:
        return [_not_known(group, str(error))]
    except Exception as error:  # noqa: BLE001  # a finding, not the end of all others
        text = f"the checks failed themselves: {type(error).__name__}: {error}"
        fix = "this is a bug or needs root (sudo); please report it with what is shown here"
        return [Finding("look", False, text, fix)]


def _not_known(group: str, why: str) -> Finding:
    fix = f"put that right, then `standfast doctor` again: nothing is known of {group}"
    return Finding("look", False, f"not known: {why}", fix)


def render(findings: Sequence[Listed]) -> str:
    """Writes a heading for each group, a line for each check, cause and fix below the bad ones."""
    lines: list[str] = []
    for group in dict.fromkeys(finding.group for finding in findings):
        lines += ["", group] if lines else [group]
        for finding in findings:
            if finding.group == group:
                lines += _lines(finding)
    bad = sum(not finding.ok for finding in findings)
    return "\n".join([*lines, "", f"{len(findings)} checks, {bad or 'none'} bad"])


def _lines(finding: Listed) -> list[str]:
    subject = f"{finding.subject}: " if finding.subject else ""
    lines = [f"{'ok ' if finding.ok else 'BAD'}  {finding.check:<9} {subject}{finding.evidence}"]
    if finding.cause:
        lines.append(f"               {finding.cause}")
    if finding.fix:
        lines.append(f"               -> {finding.fix}")
    return lines


def document(config: Config, findings: Sequence[Listed]) -> dict[str, Any]:
    """Returns what --json prints."""
    return {
        "v": 1,
        "volume": config.volume,
        "node": config.node,
        "ok": all(finding.ok for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def looks_of(config: Config) -> dict[str, Look]:
    """Returns the looks of this node. The service is looked at here, first: who serves decides what
    else is asked."""
    status, service = _service(config)
    serving = None if status is None else status.serving or None
    looks: dict[str, Look] = {
        "service": lambda: service,
        "storage": partial(storage_checks.look, config, None if status is None else status.holder),
        "replication": partial(standby_checks.look, config, status),
        "takeover": partial(takeover_checks.look, config, status),
        "clients": partial(look_at_mounts, config),
        "nomad": partial(look_at_nomad, config, serving),
        "node": partial(node_checks.look, config),
    }
    return {group: looks[group] for group in GROUPS}


def _service(config: Config) -> tuple[Status | None, list[Finding]]:
    try:
        status = fetch(config, listens=True)
    except StandfastError as error:
        fix = f"systemctl restart standfast-agent@{config.volume} (what is served goes on)"
        return None, [Finding("agent", False, f"no answer: {error}", fix)]
    return status, examine(status)
