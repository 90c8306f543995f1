"""Reads `/etc/standfast/<volume>.toml`: the result is whole and obeys every rule, or it is refused.

Whatever the file holds, the only exception that leaves this module is ConfigError (as
InvalidConfig, with all problems at once).
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from standfast.config.model import Config
from standfast.config.node_name import known_name
from standfast.config.parse import parse_values
from standfast.config.problems import InvalidConfig, Problem, shown
from standfast.config.rules import check, check_together, names
from standfast.config.trust import mistrusted
from standfast.errors import ConfigError, did_you_mean

DEFAULT_DIR = Path("/etc/standfast")
MOST_BYTES = 1024 * 1024
_VOLUME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")


def load(
    path: Path, *, node: str | None = None, require_storage: bool = True, acted_by: bool = True
) -> Config:
    """Returns the configuration in `path`; the volume is the file's name.

    `node` replaces the file's and the host's name. With `require_storage` this node must be one
    of [nodes]; without, it may be a client, and `Config.me` is not to be used. What is `acted_by`
    as root has to be root's alone. Raises ConfigError.
    """
    problems: list[Problem] = []
    doc = _read(path)
    volume = path.name.removesuffix(".toml")
    if not path.name.endswith(".toml") or not _VOLUME.match(volume):
        problems.append(_bad_volume(volume))
        volume = "unnamed"
    config = Config(volume=volume, source=path, **parse_values(Config, doc, (), problems))
    problems += _unless_already_bad(check(config), problems)
    config, unknown = _with_node(config, node, require_storage)
    problems += _unless_already_bad(unknown, problems)
    if acted_by:
        problems += _unless_already_bad(list(mistrusted(config)), problems)
    if problems:
        raise InvalidConfig(path, problems)
    return config


def load_volume(
    volume: str | None,
    *,
    require_storage: bool = True,
    acted_by: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Returns the configuration of a volume, or of the only one when `volume` is None."""
    directory = config_dir(environ)
    if volume is not None:
        if not _VOLUME.match(volume):
            raise InvalidConfig(directory, [_bad_volume(volume)])
        path = directory / f"{volume}.toml"
        return load(path, require_storage=require_storage, acted_by=acted_by)
    files = config_files(directory)
    if len(files) > 1:
        choices = ", ".join(shown(path.stem) for path in files)
        raise InvalidConfig(
            directory,
            [Problem("", "", f"there are several volumes ({choices})", "choose with --volume")],
        )
    return load(files[0], require_storage=require_storage, acted_by=acted_by)


def load_all(
    *, require_storage: bool = True, environ: Mapping[str, str] = os.environ
) -> tuple[Config, ...]:
    """Returns all volumes of this node; refused when one is wrong or two are in each other's
    way."""
    configs: list[Config] = []
    wrong: list[ConfigError] = []
    for path in config_files(config_dir(environ)):
        try:
            configs.append(load(path, require_storage=require_storage))
        except ConfigError as error:
            wrong.append(error)
    wrong += together(configs)
    if wrong:
        raise wrong[0] if len(wrong) == 1 else ConfigError("\n".join(map(str, wrong)))
    return tuple(configs)


def load_stored(environ: Mapping[str, str] = os.environ) -> tuple[Config, ...]:
    """Returns the volumes that are stored on this node, leaving out those that it is only a client
    of; refused where one is wrong, or there is none."""
    configs = load_all(require_storage=False, environ=environ)
    stored = tuple(config for config in configs if config.node in config.nodes)
    for config in configs:
        if config not in stored and known_name(config):
            load(config.source)  # its state is here, under another name: says what to do
    if not stored:
        directory = config_dir(environ)
        rule = f"no volume is stored on this node: {configs[0].node} is none of their [nodes]"
        raise InvalidConfig(directory, [Problem("", "", rule, "run this on a storage node")])
    return stored


def together(configs: Sequence[Config]) -> list[InvalidConfig]:
    """Returns what is wrong between volumes of one node, by file."""
    by_file: dict[Path, list[Problem]] = {}
    for config, problem in check_together(configs):
        by_file.setdefault(config.source, []).append(problem)
    return [InvalidConfig(path, problems) for path, problems in by_file.items()]


def config_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns where the configurations are: $STANDFAST_CONFIG_DIR, or else /etc/standfast."""
    return Path(environ.get("STANDFAST_CONFIG_DIR") or DEFAULT_DIR)


def config_files(directory: Path) -> tuple[Path, ...]:
    """Returns the *.toml files there, sorted; ConfigError when there are none."""
    name = f"{directory}/data-services.toml"
    way_out = f"write one: mkdir -p {directory} && standfast config example > {name}"
    try:
        files = sorted(path for path in directory.iterdir() if path.name.endswith(".toml"))
    except FileNotFoundError:
        raise InvalidConfig(
            directory, [Problem("", "", "there is no such directory", way_out)]
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidConfig(directory, [_unreadable(error)]) from error
    if not files:
        raise InvalidConfig(directory, [Problem("", "", "it holds no *.toml file", way_out)])
    return tuple(files)


def _read(path: Path) -> dict[str, Any]:
    try:
        # Not a FIFO or a device: opening those could wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            raw = file.read(MOST_BYTES + 1) or b""
    except FileNotFoundError:
        raise InvalidConfig(path, [_not_found(path)]) from None
    except (OSError, ValueError) as error:
        raise InvalidConfig(path, [_unreadable(error)]) from error
    if len(raw) > MOST_BYTES:
        raise _whole(path, f"it is larger than {MOST_BYTES} bytes", "give a configuration file")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _whole(path, f"it is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise _whole(path, f"it is not TOML: {error}", "correct the syntax there") from error
    except (ValueError, RecursionError, OverflowError) as error:
        raise _whole(path, f"it is not usable TOML: {error}", "correct that value") from error


def _whole(path: Path, rule: str, way_out: str) -> InvalidConfig:
    return InvalidConfig(path, [Problem("", "", re.sub(r"\s+", " ", rule).strip(), way_out)])


def _not_found(path: Path) -> Problem:
    try:
        there = ", ".join(sorted(entry.stem for entry in path.parent.glob("*.toml"))[:20])
    except (OSError, ValueError):
        there = ""
    way_out = f"write it: standfast config example > {path}"
    if there:
        meant = did_you_mean(path.stem, there.split(", "))
        way_out = f"the volumes there are: {there}{meant}"
    return Problem("", "", "there is no such file", way_out)


def _unreadable(error: Exception) -> Problem:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    way_out = "check its kind, owner and mode"
    if isinstance(error, PermissionError):
        way_out = "run it with sudo, or let everybody read it: there is no secret in it"
    return Problem("", "", f"can't be read: {why}", way_out)


def _bad_volume(volume: str) -> Problem:
    return Problem(
        "volume",
        shown(volume),
        "the file is VOLUME.toml, and a volume's name has 1 to 63 small letters, digits and "
        "dashes, none of those at either end",
        "rename the file, for example to data-services.toml",
    )


def _with_node(
    config: Config, given: str | None, require_storage: bool
) -> tuple[Config, list[Problem]]:
    if given is None and config.node:
        return config, []  # the rules have looked at it
    name = given or socket.gethostname().split(".")[0]
    config = replace(config, node=name)
    if not require_storage or not config.nodes or name in config.nodes:
        return config, []
    source = "was asked for" if given else "is this host's name"
    known = known_name(config)
    if known in config.nodes:
        what_now = f'set node = "{known}": that is this node, by its own state ({config.state_dir})'
    else:
        what_now = 'set node = "NAME" to one of them, or add this node'
    return config, [
        Problem(
            "node",
            "",
            f"{shown(name)} {source}, and the storage nodes are {names(config)}",
            what_now,
            ("nodes",),
        )
    ]


def _unless_already_bad(problems: list[Problem], bad: list[Problem]) -> list[Problem]:
    """Rules speak only of keys whose values could be read."""
    wrong = {problem.key for problem in bad}

    def is_bad(key: str) -> bool:
        return any(key == other or key.startswith(other + ".") for other in wrong)

    return [problem for problem in problems if not any(map(is_bad, (problem.key, *problem.others)))]
