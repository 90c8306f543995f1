"""`<state_dir>/nomad.json`: what the last round of following saw and did, for status and doctor."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from standfast.config.model import Config
from standfast.errors import StandfastError
from standfast.reasons import Reason
from standfast.system.files import read_json, write_atomically

log = logging.getLogger(__name__)

_FIELDS = frozenset(["at", "role", "reason", "sentence", "settled", "done", "failed", "jobs"])


def path_of(config: Config) -> Path:
    return config.state_dir / "nomad.json"


def save(config: Config, document: Mapping[str, Any]) -> None:
    """Writes the report; not durably, since the next round writes it again."""
    try:
        write_atomically(path_of(config), json.dumps(document))
    except OSError as error:
        log.warning("%s was not written: %s", path_of(config), error)


def load(config: Config) -> Mapping[str, Any]:
    """Returns the last report, or one that says why there is none."""
    try:
        report = read_json(path_of(config))
    except StandfastError as error:
        return none(str(error))
    if report is None or not set(report) >= _FIELDS:
        return none("the agent has not looked at Nomad yet")
    return report


def none(sentence: str, reason: Reason = Reason.NOMAD_ROLE_CHANGING) -> Mapping[str, Any]:
    """Returns a report of no round."""
    return {
        "v": 1,
        "at": None,
        "role": "changing",
        "reason": str(reason),
        "sentence": sentence,
        "settled": False,
        "done": [],
        "failed": [],
        "jobs": [],
    }
