"""Which volumes and standbys a command is for, by what the command line names."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from standfast.cli.output import error_fields, print_json
from standfast.config.load import config_dir, config_files, load, load_volume
from standfast.config.model import Config
from standfast.errors import ConfigError, Refused, StandfastError, did_you_mean, ours
from standfast.reasons import Reason
from standfast.text import clean_lines


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command that only looks says of one volume."""

    document: Mapping[str, Any]
    """For --json."""
    show: Callable[[], None]
    """Prints it for people."""
    code: int = 0


def tell_of_each(
    args: argparse.Namespace, ask: Callable[[Config], Answer], *, require_storage: bool = False
) -> int:
    """Tells of the volume that is named, or the only one; else of all, with --json as a list.

    Returns the highest exit code. One of several that can't be asked keeps no other from its turn.
    """
    paths = [] if args.volume else config_files(config_dir())
    if len(paths) <= 1:
        answer = ask(load_volume(args.volume, require_storage=require_storage))
        print_json(answer.document) if args.json else answer.show()
        return answer.code
    documents: list[Mapping[str, Any]] = []
    code = 0
    for path in paths:
        try:
            answer = ask(load(path, require_storage=require_storage))
        except (StandfastError, OSError) as error:
            answer = _failed(path.stem, ours(error))
        documents.append(answer.document)
        code = max(code, answer.code)
        if not args.json:
            print(f"{'' if path == paths[0] else chr(10)}volume {path.stem}", flush=True)
            answer.show()
    if args.json:
        print_json(documents)
    return code


def _failed(volume: str, error: StandfastError) -> Answer:
    told = error_fields(error)
    if isinstance(error, ConfigError):
        told["reason"] = str(Reason.CONFIG_INVALID)
    text = f"standfast: {told['reason']}: {error}"
    return Answer(
        {"volume": volume, **told, "exit_code": error.exit_code},
        lambda: print(clean_lines(text), file=sys.stderr, flush=True),
        error.exit_code,
    )


def for_each_volume(volume: str | None, act: Callable[[Config], int]) -> int:
    """Runs `act` for the volume, or for each of this node; returns the highest exit code.

    It needs no storage here, so it is for clients, too. One volume's ConfigError keeps no other
    volume from its turn, and is raised at the end.
    """
    if volume is not None:
        return act(load_volume(volume, require_storage=False))
    code = 0
    wrong: ConfigError | None = None
    for path in config_files(config_dir()):
        try:
            code = max(code, act(load(path, require_storage=False)))
        except ConfigError as error:
            wrong = error
    if wrong is not None:
        raise wrong
    return code


def forbidden(paths: Sequence[Path]) -> Path | None:
    """Returns the first of these, files or directories of root's, that this user may not use."""
    for path in paths:
        try:
            needed = os.W_OK if stat.S_ISSOCK(path.lstat().st_mode) else os.R_OK
        except PermissionError:
            return path
        except OSError:
            continue
        if not os.access(path, needed, effective_ids=True):
            return path
    return None


def standbys_of(config: Config, standby: str | None) -> tuple[str, ...]:
    """Returns the standby, or all of the volume; Refused (unknown-node) when there is none."""
    if standby is None and config.standbys:
        return config.standbys
    if standby is None or standby not in config.standbys:
        raise Refused(
            Reason.UNKNOWN_NODE,
            f"{standby or 'no standby'} is not another storage node of {config.volume}: "
            f"{', '.join(config.standbys) or 'there is none'}"
            f"{did_you_mean(standby or '', config.standbys)}. The nodes are in {config.source}",
        )
    return (standby,)
