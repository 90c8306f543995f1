"""Why a stream wasn't taken in, by btrfs' own words."""

from __future__ import annotations

from pathlib import Path
from time import thread_time

import pytest

from standfast.errors import CommandFailed
from standfast.names import SnapshotName
from standfast.node.ports import Snapshot
from standfast.reasons import Reason
from standfast.replication.receive_checks import RESERVE_BYTES
from standfast.replication.stream_failures import why_not_taken_in
from standfast.system.run import TAIL_BYTES
from tests.support.pace import patient

OWN = Snapshot(SnapshotName.at("services", 1_800_000_000.0), Path("/p"), "x", received=False)


def reason(words: str, own: Snapshot | None = OWN, free_bytes: int = RESERVE_BYTES) -> Reason:
    error = CommandFailed("receive: btrfs ended with status 1", returncode=1, stderr=words)
    refusal = why_not_taken_in(error, "b", own, free_bytes)
    assert str(refusal).startswith(str(error))
    return refusal.reason


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ERROR: unlink f failed: Operation not permitted", Reason.NEEDS_FULL),
        ("ERROR: writing to big failed: Disk quota exceeded\nmore", Reason.NO_SPACE),
        ("ERROR: empty stream is not considered valid", Reason.INCOMPLETE),
        ("ERROR: unlink Invalid argument failed: No such file or directory", Reason.INCOMPLETE),
        ("", Reason.INCOMPLETE),
    ],
)
def test_only_what_was_taken_here_is_blamed_for_its_flags(words: str, expected: Reason) -> None:
    assert reason(words) is expected
    elsewhere = Reason.INCOMPLETE if expected is Reason.NEEDS_FULL else expected
    assert reason(words, own=None) is elsewhere


def test_a_disk_that_is_full_is_said_to_be_that() -> None:
    assert reason("No space left on device", free_bytes=RESERVE_BYTES - 1) is Reason.NO_SPACE


@pytest.mark.parametrize(
    "words",
    [
        "ERROR: failed to clone extents to a b: ",
        "ERROR: lsetxattr f btrfs.compression=zstd failed: ",
    ],
)
def test_what_a_file_without_checksums_can_not_take_is_sent_as_a_whole(words: str) -> None:
    """Where this node received what the increment builds on, too: that may go back to its own."""
    error = f"{words}Invalid argument\n"
    assert reason(error) is reason(error, own=None) is Reason.NEEDS_FULL
    assert reason(f"{words}Input/output error") is Reason.INCOMPLETE


def test_names_that_were_made_for_it_hold_nobody_up() -> None:
    """As much of stderr as is kept; who may write into the volume chooses the names in it."""
    words = "ERROR: " + "lsetxattr  btrfs.compression=" * (TAIL_BYTES // 29)
    started = thread_time()
    assert reason(words) is Reason.INCOMPLETE
    assert reason(words.replace(" ", "\n")) is Reason.INCOMPLETE
    assert thread_time() - started < patient(0.05)
