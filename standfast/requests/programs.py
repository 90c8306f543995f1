"""Requests that are a program's work: `standfast ...` as a child of the agent.

Invariant: no token is in its arguments or its environment: it reads the configuration's
`consul.token_file`, as every command on the node does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from standfast.errors import Refused
from standfast.reasons import Reason
from standfast.requests.record import Request, Verb
from standfast.requests.work import Work
from standfast.system.clock import Deadline
from standfast.system.run import run
from standfast.system.threads import start

LAST_WORD_S = 10.0
"""A program that has the limit itself says what came of it until then."""
TAIL = 4000
"""Characters of what it says on stderr that are passed on."""


def words_of(request: Request, volume: str) -> Sequence[str]:
    """Returns the arguments of `standfast` for a request."""
    arguments = request.arguments
    words = [*str(request.verb).split(" "), "--volume", volume]
    if arguments.as_json:
        words.append("--json")
    if arguments.dry_run:
        words.append("--dry-run")
    if arguments.full:
        words.append("--full")
    if request.verb in (Verb.REPLICATE, Verb.STANDBY_ADD):
        words.append("--quiet")
    if request.verb is Verb.STANDBY_ADD:
        words += ["--timeout", f"{arguments.timeout_s:g}"]
    if arguments.standby is not None:
        words.append(arguments.standby)
    return words


def begin(program: Sequence[str], volume: str, work: Work) -> None:
    """Runs it in a thread of its own, which ends the work in any case."""
    if not program:
        work.fail(Refused(Reason.BUSY, "this node's agent starts no programs"))
        return
    request = work.request
    argv = [*program, *words_of(request, volume)]

    def body() -> None:
        with work:
            if not work.begin():
                return
            try:
                _carry_out(argv, work)
            except Exception as error:  # noqa: BLE001  # told to whoever asked
                work.fail(error)

    start(f"request {request.id}", body)


def _carry_out(argv: Sequence[str], work: Work) -> None:
    request = work.request
    work.say(f"{request.node} runs `standfast {request.verb}`")
    deadline = Deadline.after(request.arguments.timeout_s + LAST_WORD_S)
    done = run(argv, deadline=deadline, op=f"request:{request.verb}", check=False)
    document = None
    if request.arguments.as_json:
        try:
            document = json.loads(done.stdout)
        except ValueError:
            document = None
    said = done.stderr[-TAIL:].strip() or None
    text = None if document is not None else done.stdout
    work.end(done.returncode, text=text, error=said, document=document)
