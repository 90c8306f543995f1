"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One check; `fix` is empty when all is well."""

    check: str
    ok: bool
    evidence: str
    fix: str = ""
    subject: str = ""
    """Of several alike: which one, such as a standby's name."""
