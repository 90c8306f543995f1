"""Programs of the operator's own that run at a change of role: /etc/standfast/hooks.d/EVENT/NAME.

Invariants: only `pre-promote` is asked, everything else is told; what runs after the fact is run by
a thread of its own and delays nothing; each program has a deadline and is gone with all that it
started; one that somebody else than root could have written is not run.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from standfast.config.model import Config
from standfast.config.trust import untrusted
from standfast.errors import Refused, StandfastError, TimedOut
from standfast.events.events import Kind, happened, tell
from standfast.reasons import Reason
from standfast.system.clock import Deadline
from standfast.system.lines import clean, lines_of
from standfast.system.run import run
from standfast.system.threads import start

log = logging.getLogger(__name__)

VETO = 75
"""The one exit status that is a word and no accident: EX_TEMPFAIL, "not now"."""
WAITING_MOST = 100
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\Z")
_LEFTOVER = re.compile(r"(~|\.(bak|orig|rej|swp|tmp|dpkg-.*|rpm(new|save|orig)|ucf-.*))\Z")


class Occasion(StrEnum):
    """The directory's name, the program's first argument, and STANDFAST_EVENT."""

    PRE_PROMOTE = "pre-promote"
    POST_PROMOTE = "post-promote"
    PRE_DEMOTE = "pre-demote"
    POST_DEMOTE = "post-demote"
    PROMOTION_REFUSED = "promotion-refused"
    FAILED_CYCLE = "failed-cycle"


@dataclass(frozen=True, slots=True)
class Hook:
    """One program; `wrong` says why it isn't run, None: it is."""

    occasion: Occasion
    path: Path
    wrong: str | None

    @property
    def name(self) -> str:
        return f"{self.occasion}/{self.path.name}"


def programs(config: Config, occasion: Occasion) -> list[Hook]:
    """Returns the programs of an event in the order of their names.

    Names that package managers and editors leave don't count.
    """
    directory = config.hooks.dir / occasion
    try:
        paths = sorted(directory.iterdir(), key=lambda path: path.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        return [Hook(occasion, directory, f"{directory} can't be read: {error.strerror}")]
    names = [path for path in paths if _NAME.match(path.name) and not _LEFTOVER.search(path.name)]
    return [Hook(occasion, path, _wrong(path)) for path in names]


def strangers(config: Config) -> list[str]:
    """Returns what lies in the hooks' directory and is no event's: a name with a mistake, say."""
    try:
        names = sorted(path.name for path in config.hooks.dir.iterdir())
    except OSError:
        return []
    return [name for name in names if not name.startswith(".") and name not in set(Occasion)]


def _wrong(path: Path) -> str | None:
    try:
        if (wrong := untrusted(path, (0, os.geteuid()))) is not None:
            return wrong
        if not path.is_file():
            return f"{path} is no file"
        if not os.access(path, os.X_OK):
            return f"{path} is not executable: chmod +x {path}"
    except OSError as error:
        return f"{path} can't be looked at: {error.strerror}"
    return None


def environment(config: Config, occasion: Occasion, facts: Mapping[str, object]) -> dict[str, str]:
    """Returns STANDFAST_*: what every hook is told, and the facts that are known."""
    told: dict[str, object] = {
        "event": occasion,
        "volume": config.volume,
        "node": config.node,
        "path": config.paths.bind,
        **facts,
    }
    return {
        f"STANDFAST_{name.upper()}": f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in told.items()
        if value is not None
    }


Facts = Callable[[], Mapping[str, object]]
"""What an event's hooks are told: looked up only where there are any, as that may fail."""


def ask(config: Config, facts: Facts) -> None:
    """Asks the hooks of `pre-promote`, one after the other; Refused (hook-vetoed) when one says no.

    A program that is broken is no veto, unless `hooks.pre_promote_failure` says so.
    """
    strict = _is_strict(config)
    for hook, failure in _run_all(config, Occasion.PRE_PROMOTE, facts):
        if failure.veto or strict:
            raise Refused(
                Reason.HOOK_VETOED,
                f"{config.hooks.dir / hook.name} is against it: {failure.text}. `standfast "
                f"promote` asks again. To promote without it, remove it",
            )
        _tell_failure(config, hook, failure)


def vetoes_foreseen(config: Config) -> list[Hook]:
    """Returns the hooks of `pre-promote` by which `ask` would refuse without having run them."""
    if not _is_strict(config):
        return []
    return [hook for hook in programs(config, Occasion.PRE_PROMOTE) if hook.wrong is not None]


def _is_strict(config: Config) -> bool:
    return config.hooks.pre_promote_failure == "veto"


def announce(config: Config, occasion: Occasion, facts: Facts) -> None:
    """Runs the hooks of an event and comes back when they are over, whatever they did."""
    for hook, failure in _run_all(config, occasion, facts):
        _tell_failure(config, hook, failure)


@dataclass(frozen=True, slots=True)
class _Failure:
    text: str
    veto: bool = False


def _tell_failure(config: Config, hook: Hook, failure: _Failure) -> None:
    text = f"hook {hook.name}: {failure.text}"
    tell(happened(config, Kind.HOOK_FAILED, text, STANDFAST_HOOK=hook.name))


def _run_all(config: Config, occasion: Occasion, facts: Facts) -> Iterator[tuple[Hook, _Failure]]:
    """Runs each; yields those that failed. All of one event together have `hooks.timeout`."""
    deadline = Deadline.after(config.hooks.timeout)
    hooks = programs(config, occasion)
    env = environment(config, occasion, facts()) if hooks else {}
    for hook in hooks:
        failure = _Failure(f"not run: {hook.wrong}") if hook.wrong else _run(hook, env, deadline)
        if failure is not None:
            yield hook, failure


def _run(hook: Hook, env: Mapping[str, str], deadline: Deadline) -> _Failure | None:
    argv = [str(hook.path), str(hook.occasion)]
    try:
        done = run(argv, deadline=deadline, op=f"hook:{hook.name}", env=env, check=False)
    except TimedOut:
        return _Failure("it didn't end in time (hooks.timeout, for all of an event) and was killed")
    except StandfastError as error:
        return _Failure(str(error))
    said = [clean(line) for text in (done.stdout, done.stderr) for line in lines_of(text)]
    for line in said:
        log.info("hook %s: %s", hook.name, line)
    last = f': "{said[-1].strip()[:300]}"' if said else ", and it said nothing"
    if done.returncode == 0:
        return None
    if hook.occasion is Occasion.PRE_PROMOTE and done.returncode == VETO:
        return _Failure(f"it ended with {VETO}{last}", veto=True)
    how = f"killed by signal {-done.returncode}" if done.returncode < 0 else (
        f"status {done.returncode}"
    )  # fmt: skip
    more = f" (a veto is status {VETO})" if hook.occasion is Occasion.PRE_PROMOTE else ""
    return _Failure(f"ended with {how}{more}{last}")


class Later:
    """A thread that runs the hooks of what has happened, in its order, while the rest goes on."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._queue: queue.Queue[tuple[Occasion, Facts]] = queue.Queue(WAITING_MOST)
        self._thread: threading.Thread | None = None

    def add(self, occasion: Occasion, facts: Mapping[str, object]) -> None:
        """Returns at once."""
        if not programs(self._config, occasion):
            return
        try:
            self._queue.put_nowait((occasion, lambda: facts))
        except queue.Full:
            log.error("the hooks of %s are left out: %d events wait", occasion, WAITING_MOST)
        if self._thread is None:
            self._thread = start("hooks", self._work)

    def _work(self) -> None:
        while True:
            occasion, facts = self._queue.get()
            try:
                announce(self._config, occasion, facts)
            except Exception:
                log.exception("the hooks of %s failed unexpectedly", occasion)
            finally:
                self._queue.task_done()

    def join(self) -> None:
        """Waits for what was added; for tests."""
        self._queue.join()
