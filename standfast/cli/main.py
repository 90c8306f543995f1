"""The `standfast` command: the only place that turns errors into messages and exit codes.

Start-up is the user's time: only the command that runs is imported.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from standfast.cli import direct
from standfast.errors import (
    AS_ROOT,
    ConfigError,
    NeedsRoot,
    Refused,
    StandfastError,
    UsageError,
    is_lack_of,
)
from standfast.system import environment
from standfast.system.lines import lines_of

if TYPE_CHECKING:
    from argparse import Namespace
    from types import SimpleNamespace

    from standfast.reasons import Reason

INTERRUPTED = 130
BROKEN_PIPE = 141
UNEXPECTED = 4
_GARBAGE = 50_000

# At its end the interpreter would look through all that was imported for garbage: 20 ms, for which
# a sender waits in each cycle. What is frozen isn't looked at.
atexit.register(gc.freeze)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; nothing is raised."""
    words = list(sys.argv[1:] if argv is None else argv)
    return _reported(lambda: _run(words), as_json="--json" in words)


def run_entry(entry: str, args: SimpleNamespace) -> int:
    """Does the same for a command whose words were read already: MODULE:FUNCTION and arguments."""
    return _reported(lambda: _enter(entry, args), as_json=False)


def _reported(run: Callable[[], int], *, as_json: bool) -> int:
    environment.take()
    try:
        _tolerate_odd_encodings()
        code = run()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last door: reported, with its exit code
        return _fail(error, as_json=as_json)


def _run(words: Sequence[str]) -> int:
    # What is imported stays: looking through it again and again takes a tenth of the start-up.
    gc.set_threshold(_GARBAGE)
    if (known := direct.recognise(words)) is not None:
        return _enter(*known)
    from standfast.cli.parser import build

    parser = build(words)
    if not words:
        parser.print_help(sys.stderr)
        return 2
    try:
        args = parser.parse_args(words)
    except SystemExit as end:  # --help and --version
        return end.code if isinstance(end.code, int) else 0
    return _enter(args.entry, args)


def _enter(entry: str, args: Namespace | SimpleNamespace) -> int:
    module, _, function = entry.partition(":")
    return int(getattr(import_module(module), function)(args))


def _fail(error: Exception, *, as_json: bool) -> int:
    if isinstance(error, PermissionError):
        error = _needs_root(error)
    code = error.exit_code if isinstance(error, StandfastError) else UNEXPECTED
    try:
        for line in _lines(error):
            print(line, file=sys.stderr)
        if as_json:
            import json

            doc = {"error": str(error), "reason": _reason(error), "exit_code": code}
            print(json.dumps(doc))
        if os.environ.get("STANDFAST_DEBUG") == "1" and not isinstance(error, UsageError):
            import traceback

            traceback.print_exception(error)
        sys.stdout.flush()
    except OSError:  # nobody reads
        _drop_output()
    return code


def _needs_root(error: PermissionError) -> NeedsRoot:
    needs_root = NeedsRoot(f"{error}. {AS_ROOT}")
    needs_root.__cause__ = error
    return needs_root


def _lines(error: Exception) -> list[str]:
    text = str(error)
    if isinstance(error, Refused):
        if text.startswith("ERROR: "):  # the runbook's text stands alone, to the letter
            return [text, f"standfast: {error.reason}"]
        return [f"standfast: {error.reason}: {text}"]
    if isinstance(error, StandfastError):
        lines = [*(lines_of(text) or [type(error).__name__])]
        if is_lack_of(error, errno.EACCES, errno.EPERM) and not _says_root(text):
            lines.append(AS_ROOT)
        return [f"standfast: {line}" for line in lines]
    what = " ".join(lines_of(f"{type(error).__name__}: {text}"))
    return [
        f"standfast: unexpected: {what}; this is a bug, please report it with what "
        "STANDFAST_DEBUG=1 shows"
    ]


def _says_root(text: str) -> bool:
    """Tells whether the next step is said already; root itself has another reason to be refused."""
    return "root" in text or os.geteuid() == 0


def _reason(error: Exception) -> Reason | str | None:
    from standfast.reasons import Reason
    from standfast.replication.failures import reason_of

    if isinstance(error, UsageError):
        return None
    if isinstance(error, ConfigError):
        return Reason.CONFIG_INVALID
    told = getattr(error, "reason", None)  # an agent's word
    if isinstance(told, str):
        return told
    return reason_of(error)


def _tolerate_odd_encodings() -> None:
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Closes the output, so that the interpreter's last flush doesn't complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            try:
                descriptor = os.open(os.devnull, os.O_WRONLY)
                os.dup2(descriptor, stream.fileno())
                os.close(descriptor)
            except (OSError, ValueError):
                continue
