"""The steps of a setup, as data: pure, in an order that is tested.

Invariants: the guard is in place before the server's unit is disabled, and everything that a
process reads is there before it is started; what is noted (`record.py`) is noted before it is
written. Each step can be repeated: a plan that was cut is made anew from what is there then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from standfast.setup.execute import Step
from standfast.setup.observation import Observed
from standfast.setup.wanted import Wanted
from standfast.text import some


class Do(StrEnum):
    """Every effect that a setup may have; `steps` has one function for each."""

    CONFIG = "config"
    TOKEN = "token"  # noqa: S105
    PROGRAMS = "programs"
    PAGES = "pages"
    UNITS = "units"
    CATALOG = "catalog"
    DIRECTORIES = "directories"
    NFS_SERVER = "nfs-server"
    CHECK = "check"
    KEY = "key"
    RESTART = "restart"
    ENABLE = "enable"
    WAIT = "wait"


DISABLED = ("disabled", "static", "masked", "indirect", "linked", "")
"""States of a unit that nothing starts at boot, as `systemctl is-enabled` has them."""


def plan(seen: Observed, wanted: Wanted) -> tuple[Step, ...]:
    """Returns the steps from what is there to what is wanted, those too that are done already."""
    config = wanted.config
    agent = f"standfast-agent@{config.volume}"
    steps = [_config(seen, wanted)]
    if wanted.token is not None and config.consul.token_file is not None:
        same = seen.token == wanted.token
        text = f"the ACL token in {config.consul.token_file}, readable by root alone"
        steps.append(Step(Do.TOKEN, text, not same))
    steps += _links(seen, wanted)
    steps += _texts(Do.PAGES, "man page and completions", seen, wanted.pages, may_fail=True)
    steps += _texts(Do.UNITS, "units and drop-ins", seen, wanted.units)
    steps += _texts(Do.CATALOG, "explanations for journalctl -x", seen, wanted.catalog,
                    may_fail=True)  # fmt: skip
    steps.append(_directories(seen, wanted))
    if wanted.is_storage:
        steps.append(_server(seen, wanted))
    steps.append(Step(Do.CHECK, f"{config.source} can be used by root's processes"))
    if wanted.is_storage and not config.replication.command:
        key = config.replication.ssh_key
        steps.append(Step(Do.KEY, f"the replication key {key}", not seen.has_key))
    if seen.running and (seen.installed.restart or changes(steps)):
        names = some(sorted(seen.running))
        steps.append(Step(Do.RESTART, f"have what runs read it anew: {names}"))
    steps.append(_units(seen, wanted))
    waits = f"{agent} answers" if wanted.is_storage else f"the watches of {config.volume} run"
    steps.append(Step(Do.WAIT, waits, not seen.answers or bool(changes(steps))))
    return tuple(steps)


def changes(steps: Sequence[Step]) -> Sequence[Step]:
    """Returns those after which what runs is of before."""
    read = (Do.CONFIG, Do.TOKEN, Do.UNITS)
    return [step for step in steps if step.pending and step.do in read]


def is_done(steps: Sequence[Step]) -> bool:
    """Tells whether nothing is left to do; what only looks doesn't count."""
    return not any(step.pending for step in steps if step.do is not Do.CHECK)


def different(seen: Observed, texts: Mapping[Path, str]) -> list[Path]:
    """Returns those files that are there, and hold something else."""
    return [path for path, text in texts.items() if seen.there.get(path, text) != text]


def missing(seen: Observed, paths: Collection[Path]) -> list[Path]:
    return [path for path in paths if path not in seen.there]


def _config(seen: Observed, wanted: Wanted) -> Step:
    source = wanted.config.source
    there = seen.there.get(source)
    if there is None:
        return Step(Do.CONFIG, f"{source}: volume {wanted.config.volume}")
    if there != wanted.text:
        return Step(Do.CONFIG, f"replace {source}; the one that is there is kept beside it")
    if str(source) in seen.installed.files and not seen.installed.wrote(source, there):
        # By hand, since the setup that wrote it: what runs may be of before.
        return Step(Do.CONFIG, f"{source}: it was edited since the last setup")
    return Step(Do.CONFIG, f"{source}: volume {wanted.config.volume}", pending=False)


def _links(seen: Observed, wanted: Wanted) -> list[Step]:
    if not wanted.links:
        return []
    wrong = [link for link, to in wanted.links.items() if seen.leads.get(link) != str(to)]
    directory = next(iter(wanted.links)).parent
    return [Step(Do.PROGRAMS, f"{len(wanted.links)} programs in {directory}", bool(wrong))]


def _texts(
    do: Do, what: str, seen: Observed, texts: Mapping[Path, str], *, may_fail: bool = False
) -> list[Step]:
    if not texts:
        return []
    left, other = missing(seen, texts), different(seen, texts)
    said = f"{what} ({len(texts)} files)" if len(texts) > 1 else f"{what}: {next(iter(texts))}"
    if other:
        said += f"; replace {some(sorted(map(str, other)), 3)}"
    return [Step(do, said, bool(left or other), may_fail)]


def _directories(seen: Observed, wanted: Wanted) -> Step:
    left = [path for path in wanted.directories if path not in seen.modes]
    open_ = [path for path in wanted.directories if path in _too_open(seen, wanted)]
    said = some(sorted(map(str, wanted.directories)))
    if open_:
        said += f"; others may no longer enter {', '.join(map(str, open_))}"
    return Step(Do.DIRECTORIES, said, bool(left or open_))


def _too_open(seen: Observed, wanted: Wanted) -> list[Path]:
    """Set-uid programs of clients lie in the directory of copies."""
    return [
        path
        for path, mode in wanted.directories.items()
        if mode == 0o700 and seen.modes.get(path, 0) & 0o077
    ]


def _server(seen: Observed, wanted: Wanted) -> Step:
    unit, server = wanted.config.nfs.unit, seen.server
    enabled = server.enablement not in DISABLED
    stops = server.active and not server.ours and not server.exports_others
    text = f"{unit} isn't started at boot: the agent starts it on the primary"
    if stops:
        text += "; stop it now, as it serves nothing"
    elif server.active and not server.ours:
        text += "; it runs on, as it serves something else"
    return Step(Do.NFS_SERVER, text, enabled or stops)


def _units(seen: Observed, wanted: Wanted) -> Step:
    on = [*wanted.started, *wanted.enabled]
    left = [unit for unit in on if unit not in seen.enabled]
    left += [unit for unit in wanted.started if unit not in seen.running]
    return Step(Do.ENABLE, f"enable and start {', '.join(on)}", bool(left))
