"""The configuration that a setup is given: from a file of the cluster, or from answers."""

from __future__ import annotations

import json
import re
import socket
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from standfast.config.load import load
from standfast.config.model import Config
from standfast.config.problems import InvalidConfig
from standfast.errors import UsageError
from standfast.system.files import write_atomically

_NODE = re.compile(r"(?m)^[ \t]*node[ \t]*=.*\n?")
_TABLE = re.compile(r"(?m)^[ \t]*\[")
_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")


@dataclass(frozen=True, slots=True)
class Answers:
    """What a new configuration can't do without."""

    cluster: str
    nodes: Mapping[str, str]
    """Addresses by name."""
    clients: Sequence[str]
    token_file: str = ""
    """Empty: Consul has no ACLs."""


def new_text(volume: str, answers: Answers) -> str:
    """Returns a configuration with what was answered; all else has its default."""
    lines = [
        f"# Standfast: volume {volume}, the same file on every node. `standfast config example` "
        f"has every key.",
        f"cluster = {json.dumps(answers.cluster)}",
        "",
        "[nfs]",
        f"clients = {json.dumps(list(answers.clients))}",
        "",
    ]
    if answers.token_file:
        lines += ["[consul]", f"token_file = {json.dumps(answers.token_file)}", ""]
    for name, address in answers.nodes.items():
        key = name if _BARE.match(name) else json.dumps(name)
        lines += [f"[nodes.{key}]", f"address = {json.dumps(address)}", ""]
    return "\n".join(lines)


def with_node(text: str, node: str) -> str:
    """Returns the text with `node` as this node's name, the first key of all."""
    table = _TABLE.search(text)
    end = len(text) if table is None else table.start()
    return f"node = {json.dumps(node)}\n{_NODE.sub('', text[:end])}{text[end:]}"


def own_name(text: str, asked: str | None, in_consul: str) -> str | None:
    """Returns the name that the file has to say; None: it says it, or the host's name does.

    `asked`: by --node; `in_consul`: what this node's Consul agent is called, empty: not known.
    UsageError for a name that no storage node has.
    """
    try:
        doc = tomllib.loads(text)
        nodes = doc.get("nodes", {})
        said, names = doc.get("node"), set(nodes) if isinstance(nodes, dict) else set()
    except ValueError:
        return None  # whoever loads it says what is wrong
    host = socket.gethostname().split(".")[0]
    if asked is not None:
        if asked not in names and asked != host:
            raise UsageError(
                f"{asked} is none of the storage nodes ({', '.join(sorted(names))}); a client goes "
                f"by its host's name, which is {host}: leave --node out"
            )
        return None if asked == (said or host) else asked
    if said is None and host not in names and in_consul in names:
        return in_consul
    return None


def take(text: str, volume: str, origin: Path, target: Path) -> Config:
    """Returns the configuration in `text` as it will be read at `target`; InvalidConfig with all
    problems, told of `origin`."""
    with tempfile.TemporaryDirectory(prefix="standfast-") as directory:
        path = Path(directory) / f"{volume}.toml"
        write_atomically(path, text)
        try:
            config = load(path, require_storage=False, acted_by=False)
        except InvalidConfig as error:
            raise InvalidConfig(origin, error.problems) from None
    return replace(config, source=target)
