"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass

from standfast.replication.preflight import Problem


@dataclass(frozen=True, slots=True)
class Finding:
    """Says how one check ended; `fix` is empty when all is well."""

    check: str
    ok: bool
    evidence: str
    fix: str = ""
    subject: str = ""
    """Of several alike: which one, such as a standby's name."""


def finding_of(problem: Problem, subject: str = "") -> Finding:
    """Returns what is wrong before a replication as the result of a check."""
    if problem.lasts:
        return Finding(problem.check, True, f"{problem.evidence}: {problem.fix}", "", subject)
    return Finding(problem.check, False, problem.evidence, problem.fix, subject)
