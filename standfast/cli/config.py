"""config check and config example."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from standfast.cli.output import print_json
from standfast.config import example as generator
from standfast.config.advice import advice
from standfast.config.load import config_dir, config_files, load, together
from standfast.config.model import Config
from standfast.config.node_name import check_name
from standfast.config.problems import InvalidConfig, Problem, shown
from standfast.consul.gateway import ConsulGateway
from standfast.consul.node_name import misnamed
from standfast.errors import StandfastError
from standfast.text import clean

DEFAULT_VOLUME = "data-services"


def check(args: argparse.Namespace) -> int:
    """Runs `standfast config check`; returns 0 when every file is correct, else 2."""
    try:
        paths = _paths(args.volume, args.files)
    except InvalidConfig as error:
        return _report(args.json, [], {error.source: list(error.problems)}, {})
    good: list[tuple[Config, str]] = []
    words: dict[Path, list[Problem]] = {}
    bad: dict[Path, list[Problem]] = {}
    for path in paths:
        try:
            # A client, which is no storage node, has the same files.
            config = load(path, require_storage=False, acted_by=not args.files)
            check_name(config)
            good.append((config, _compared(config)))
            wrong, words[path] = advice(config, here=not args.files)
            if wrong:
                bad[path] = wrong
        except InvalidConfig as error:
            bad[path] = list(error.problems)
    for conflict in together([config for config, _ in good]):
        bad.setdefault(conflict.source, []).extend(conflict.problems)
    good = [each for each in good if each[0].source not in bad]
    return _report(args.json, good, bad, words)


def example(args: argparse.Namespace) -> int:
    """Runs `standfast config example`."""

    print(generator.example(args.volume or DEFAULT_VOLUME), end="")
    return 0


def _paths(volume: str | None, files: Sequence[str]) -> Sequence[Path]:
    if files:
        return [Path(name) for name in dict.fromkeys(files)]
    if volume is not None:
        return [config_dir() / f"{volume}.toml"]
    return config_files(config_dir())


def _compared(config: Config) -> str:
    """Says why the node's name was not compared with Consul's; empty: it was, or needn't be.
    InvalidConfig when Consul's agent here has another name."""
    if config.node not in config.nodes:
        return ""  # nothing in Consul goes by a client's name
    try:
        named = ConsulGateway.from_config(config).node_name()
    except StandfastError as error:
        return f"not compared with this node's name in Consul ({error})"
    if misnamed(config.node, named) is None:
        return ""
    rule = f"the Consul agent of this node is called {shown(named)}"
    way_out = (
        f"set `node_name` to {shown(config.node)} in that agent's configuration and restart it; or "
        f"use its name here, in `node` and [nodes], on every node"
    )
    raise InvalidConfig(
        config.source, [Problem("node", shown(config.node), rule, way_out, ("nodes",))]
    )


def _report(
    as_json: bool,
    good: Sequence[tuple[Config, str]],
    bad: Mapping[Path, Sequence[Problem]],
    words: Mapping[Path, Sequence[Problem]],
) -> int:
    if as_json:
        files = [_good_document(config, why) for config, why in good]
        files += [_bad_document(path, problems) for path, problems in bad.items()]
        for file in files:
            file["warnings"] = [asdict(word) for word in words.get(Path(file["file"]), ())]
        print_json({"ok": not bad, "files": files})
    else:
        for config, why in good:
            print(f"{config.source}: ok: volume {config.volume}, {_role(config)}")
            if why:
                print(f"{config.source}: {clean(why)}")
        for path, problems in bad.items():
            for problem in problems:
                print(f"{clean(str(path))}: {problem}")
        for path, doubtful in words.items():
            for problem in doubtful:
                print(f"{clean(str(path))}: warning: {problem}")
    return 2 if bad else 0


def _good_document(config: Config, not_compared: str) -> dict[str, Any]:
    return {"file": str(config.source), "ok": True, "volume": config.volume, "node": config.node,
            "storage_node": config.node in config.nodes, "problems": [],
            "not_compared": not_compared or None}  # fmt: skip


def _bad_document(path: Path, problems: Sequence[Problem]) -> dict[str, Any]:
    return {"file": str(path), "ok": False, "problems": [asdict(problem) for problem in problems]}


def _role(config: Config) -> str:
    if config.node not in config.nodes:
        return f"{config.node} is a client (not in [nodes]: {', '.join(sorted(config.nodes))})"
    others = f", with {', '.join(config.standbys)}" if config.standbys else ", alone"
    return f"{config.node} is a storage node{others}"
