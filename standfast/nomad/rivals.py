"""Two volumes of a node that follow one meta would undo each other: neither is followed then."""

from __future__ import annotations

from standfast.config.load import load
from standfast.config.model import Config
from standfast.errors import ConfigError


def refuse_rivals(config: Config) -> None:
    """ConfigError when another volume of this node has the same nomad.meta_key.

    The one's standby would unset what the other's primary sets, and stop its jobs.
    """
    for path in sorted(config.source.parent.glob("*.toml")):
        if path.stem == config.volume:
            continue
        try:
            other = load(path, require_storage=False)
        except ConfigError:
            continue  # that one isn't followed either
        if other.nomad.enabled and other.nomad.meta_key == config.nomad.meta_key:
            raise ConfigError(
                f"{config.volume} and {other.volume} both have nomad.meta_key = "
                f'"{config.nomad.meta_key}": give one of them another key, and its jobs the '
                "constraint that goes with it"
            )
