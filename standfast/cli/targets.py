"""Which volumes and standbys a command is for, by what the command line names."""

from __future__ import annotations

from collections.abc import Callable

from standfast.config.load import config_dir, config_files, load, load_volume
from standfast.config.model import Config
from standfast.errors import ConfigError, Refused, did_you_mean
from standfast.reasons import Reason


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
