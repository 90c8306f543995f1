"""The node's name: remembered at the first start, and refused when it changes."""

from __future__ import annotations

from standfast.config.model import Config
from standfast.config.problems import InvalidConfig, Problem, shown
from standfast.system.files import write_atomically

_NAME = "node"
"""In the state directory: the name of the node whose state it is."""


def known_name(config: Config) -> str:
    """Returns the name that this node's state is of; empty: none, or none that can be read."""
    try:
        return (config.state_dir / _NAME).read_text().strip()
    except (OSError, ValueError):
        return ""


def check_name(config: Config) -> None:
    """InvalidConfig when this node's state is of a node of another name, as after a renaming.

    All that it knows of itself (its lease, its epoch, whose snapshots it has) is by its name: under
    another one a healthy primary would step down for itself. What can't be read is let pass.
    """
    path, known = config.state_dir / _NAME, known_name(config)
    if known not in ("", config.node):
        raise InvalidConfig(
            config.source,
            [
                Problem(
                    "node",
                    shown(config.node),
                    f"this node is {shown(known)}, by its own state ({path})",
                    "go back to that name, on every node. To rename it, make it a standby first "
                    "(standfast switchover), stop its units, change the name in every node's "
                    "configuration, delete that file and start the units again",
                    ("nodes",),
                )
            ],
        )


def keep_name(config: Config) -> None:
    """Check, and at the first start remember, the name that this node's state is of."""
    check_name(config)
    path = config.state_dir / _NAME
    if not path.exists():
        write_atomically(path, f"{config.node}\n", durable=True)
