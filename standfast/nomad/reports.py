"""`<state_dir>/nomad.json`: what the last round of following saw and did, for status and doctor."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.nomad.downtime import Downtime
from standfast.nomad.observation import Role
from standfast.reasons import Reason
from standfast.system.files import read_struct, write_struct

log = logging.getLogger(__name__)


class Report(Struct, frozen=True, kw_only=True):
    """How a round ended: for `status`, `doctor` and the journal."""

    at: float | None = None
    """Wall-clock seconds; None: no round has ended yet, or it isn't written down."""
    role: Role
    reason: Reason
    sentence: str
    settled: bool
    done: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    jobs: tuple[Downtime, ...] = ()

    def document(self) -> dict[str, Any]:
        """Returns it as `status` shows it."""
        return {"v": 1, **to_builtins(self)}


def path_of(config: Config) -> Path:
    return config.state_dir / "nomad.json"


def save(config: Config, report: Report) -> None:
    """Writes the report; not durably, since the next round writes it again."""
    try:
        write_struct(path_of(config), report)
    except OSError as error:
        log.warning("%s was not written: %s", path_of(config), error)


def load(config: Config) -> Report:
    """Returns the last report, or one that says why there is none."""
    try:
        report = read_struct(path_of(config), Report)
    except StandfastError as error:
        return none(str(error))
    return report or none("the agent has not looked at Nomad yet")


def none(sentence: str, reason: Reason = Reason.NOMAD_ROLE_CHANGING) -> Report:
    """Returns a report of no round."""
    return Report(role=Role.CHANGING, reason=reason, sentence=sentence, settled=False)
