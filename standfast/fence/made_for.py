"""What the rules of this node's fence are made for: one port and one backend, for all its volumes.

Invariant: while a server may run here, the rules are those that were put up for it. There is one
table (or one set) on a node, and whoever puts it up for another port takes the first one's rules
away: a server that still listens there would serve on after its lease. So what the rules are for is
noted beside the claims, under /run as the rules themselves end with a reboot, and a process whose
configuration says something else touches nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from msgspec import Struct, ValidationError, convert, to_builtins

from standfast.config.model import Config
from standfast.config.problems import InvalidConfig, Problem, shown
from standfast.errors import StandfastError
from standfast.system.files import read_json, write_atomically

_NAME = "made-for"
"""In the fence's directory; not *.json, which are the claims."""


class MadeFor(Struct, frozen=True):
    """The port that the rules shut, and the backend that has them."""

    port: int
    backend: str

    def __str__(self) -> str:
        return f"port {self.port} by {self.backend}"

    def save(self, directory: Path) -> None:
        """Notes it for every process of this boot; StandfastError when there is no room."""
        text = json.dumps({"v": 1, **to_builtins(self)})
        try:
            write_atomically(directory / _NAME, f"{text}\n")
        except OSError as error:
            raise StandfastError(
                f"what the fence is made for can't be noted ({error}): make room there"
            ) from error

    @classmethod
    def load(cls, directory: Path) -> MadeFor | None:
        """Returns what is noted; None: nothing, as before the first start of a boot.

        StandfastError when it can't be understood: it might be something else than anybody's
        configuration.
        """
        doc = read_json(directory / _NAME)
        try:
            return None if doc is None else convert(doc, cls)
        except ValidationError as error:
            raise StandfastError(
                f"{directory / _NAME} doesn't say which port is fenced: stop the NFS server here, "
                f"delete that file and restart Standfast's units"
            ) from error


def refusal(
    config: Config, directory: Path, known: MadeFor, own: MadeFor, why: str
) -> InvalidConfig:
    """Says that `config` can't count on this node for now, and how it can."""
    rule = f"this node's fence shuts {known} ({directory / _NAME}), and {why}"
    way_out = (
        "set it back. To change it, make this node a standby first (standfast switchover, or "
        "demote), stop the NFS server if it still runs here, change it for every volume and "
        "restart Standfast's units"
    )
    problems = []
    if known.port != own.port:
        problems.append(Problem("nfs.port", shown(own.port), rule, way_out))
    if known.backend != own.backend:
        backend = shown(config.fence.backend)
        problems.append(Problem("fence.backend", backend, rule, way_out))
    return InvalidConfig(config.source, problems)
