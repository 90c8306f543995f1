"""Reaching a standby: the command whose stdin and stdout are `standfast receive` over there.

Invariant: whatever happens in the conversation, the process that carries it is gone when the block
is left, with all that it started.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

from standfast.config.model import Config
from standfast.errors import CommandFailed, Refused, TimedOut, Unreachable
from standfast.reasons import Reason
from standfast.replication import wire
from standfast.replication.keys import ssh_argv
from standfast.system.clock import Deadline
from standfast.system.streams import Conversation

log = logging.getLogger(__name__)

SSH_FAILED = 255
"""ssh's own failures; the status of the remote command is never that."""
ANSWER_S = 60.0
"""For the standby's next answer: connecting, asking Consul, cleaning up after a cut."""
GOODBYE_S = 10.0


def transport_argv(config: Config, standby: str) -> list[str]:
    """Returns the transport's command line."""
    node, options = config.nodes[standby], config.replication
    if options.command:
        words = {"{node}": standby, "{address}": node.address, "{volume}": config.volume}
        return [_replaced(part, words) for part in options.command]
    return [*ssh_argv(config, standby), f"standfast receive {config.volume}"]


def _replaced(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def check_standby(config: Config, standby: str) -> None:
    """Raises Refused (unknown-node) unless `standby` is another storage node."""
    if standby not in config.standbys:
        others = ", ".join(config.standbys) or "there is none"
        raise Refused(Reason.UNKNOWN_NODE, f"{standby} is not another storage node: {others}")


def reach(config: Config, standby: str) -> Conversation:
    """Returns what carries a conversation, to be entered: from then on it starts up, on both sides,
    which takes longer than anything that is said in it."""
    check_standby(config, standby)
    return Conversation(transport_argv(config, standby), op=f"replicate:{standby}")


@contextlib.contextmanager
def hailing(config: Config, standby: str, purpose: wire.Purpose) -> Iterator[Conversation]:
    """Yields a conversation in which was said who speaks, at once: the standby waits for nothing
    else before it has asked Consul about that, and nobody waits for it here."""
    with reach(config, standby) as conversation:
        hello = wire.Hello(config.cluster, config.volume, config.node, purpose)
        say(conversation, hello, Deadline.after(ANSWER_S))
        yield conversation


@contextlib.contextmanager
def greeting(
    conversation: Conversation, config: Config, standby: str, deadline: Deadline
) -> Iterator[wire.Welcome]:
    """Yields what the standby answers to the hello. The block is the rest of the conversation.

    Raises Unreachable when nobody answers, Refused with the standby's reason, TimedOut.
    """
    try:
        soon = deadline.within(ANSWER_S)
        yield wire.parse(conversation.read_line(soon), wire.Welcome)
    except CommandFailed as error:
        if error.returncode == SSH_FAILED:
            raise _unreachable(config, standby, error) from error
        raise


@contextlib.contextmanager
def greet(
    config: Config, standby: str, deadline: Deadline, purpose: wire.Purpose
) -> Iterator[tuple[Conversation, wire.Welcome]]:
    """Opens a conversation and yields it with what the standby said to it; errors as above."""
    with (
        hailing(config, standby, purpose) as conversation,
        greeting(conversation, config, standby, deadline) as welcome,
    ):
        yield conversation, welcome


def say(conversation: Conversation, message: wire.Message, deadline: Deadline) -> None:
    """Sends a message; TimedOut. That the standby has gone shows in what is read next."""
    with contextlib.suppress(CommandFailed):  # its refusal says more
        conversation.send_line(wire.dump(message), deadline)


def ask(conversation: Conversation, request: wire.Message, deadline: Deadline) -> str:
    """Returns the answer to a request, one line, for `wire.parse`; CommandFailed, TimedOut."""
    say(conversation, request, deadline)
    return conversation.read_line(deadline)


def end(conversation: Conversation, deadline: Deadline) -> None:
    """Waits for the receiver's end, but not for long: it has said all that matters."""
    try:
        conversation.finish(deadline.within(GOODBYE_S))
    except (CommandFailed, TimedOut) as error:
        log.warning("after the last answer: %s", error)


def _unreachable(config: Config, standby: str, error: CommandFailed) -> Unreachable:
    return Unreachable(
        f"{standby} can't be reached at {config.nodes[standby].address}: {error}. Is it up, and is "
        f"the replication key in its authorized_keys? `standfast standby add {standby}` says what "
        f"is missing"
    )
