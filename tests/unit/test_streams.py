from __future__ import annotations

import os
from pathlib import Path

import pytest

from standfast.errors import CommandFailed, TimedOut
from standfast.system.clock import Deadline, monotonic
from standfast.system.streams import Conversation, pipeline
from tests.support.pace import patient
from tests.support.waiting import soon
from tests.unit.failing import failing
from tests.unit.processes import wait_until_gone


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def test_bytes_go_through_all_stages_and_are_counted(tmp_path: Path) -> None:
    pieces: list[int] = []
    with (tmp_path / "out").open("wb") as out:
        moved = pipeline(
            [shell("head -c 3000000 /dev/zero"), ["tr", "\\0", "a"], ["cat"]],
            deadline=soon(30),
            op="t",
            stdout=out.fileno(),
            on_bytes=pieces.append,
        )
    assert (tmp_path / "out").read_bytes() == b"a" * 3_000_000
    assert moved == sum(pieces) == 3_000_000


def test_several_stages_are_metered_at_the_descriptor_that_was_given(tmp_path: Path) -> None:
    """What counts is what goes over the wire: behind a compressor, before its counterpart."""
    (tmp_path / "in").write_bytes(b"x" * 200_000)
    shrink, grow = shell("tail -c 1000"), shell("cat; head -c 5000 /dev/zero")
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as out:
        sent = pipeline(
            [["cat", source.name], shrink], deadline=soon(30), op="t", stdout=out.fileno()
        )
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as out:
        taken = pipeline(
            [grow, ["cat"]], deadline=soon(30), op="t", stdin=source.fileno(), stdout=out.fileno()
        )
        assert out.tell() == 205_000
    assert (sent, taken) == (1000, 200_000)


def test_no_more_passes_than_the_limit_allows(tmp_path: Path) -> None:
    started = monotonic()
    with (tmp_path / "out").open("wb") as out:
        pipeline(
            [shell("head -c 300000 /dev/zero")],
            deadline=soon(30),
            op="t",
            stdout=out.fileno(),
            limit_bytes_s=500_000.0,
            stall_s=patient(0.3),
        )
    assert monotonic() - started >= 0.5


def test_a_single_stage_is_metered_at_its_input_when_it_has_one(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x" * 200_000)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as out:
        moved = pipeline(
            [["wc", "-c"]], deadline=soon(30), op="t", stdin=source.fileno(), stdout=out.fileno()
        )
        os.fstat(source.fileno())  # still open: it is the caller's
    assert moved == 200_000
    assert (tmp_path / "out").read_text().strip() == "200000"


def test_a_single_stage_without_input_is_metered_at_its_output() -> None:
    assert pipeline([shell("head -c 100000 /dev/zero")], deadline=soon(30), op="t") == 100_000


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_stage_that_failed_is_named_not_its_echo(stage: int) -> None:
    stages = [["cat", "/dev/zero"], ["cat"], ["cat"]]
    stages[stage] = shell("echo 'no space left' >&2; exit 7")
    with pytest.raises(CommandFailed, match="/bin/sh ended with status 7: no space left"):
        pipeline(stages, deadline=soon(30), op="t")


def test_a_failure_in_the_middle_of_success_is_no_success() -> None:
    with pytest.raises(CommandFailed, match="status 1"):
        pipeline([shell("echo whole; exit 1"), ["cat"]], deadline=soon(30), op="t")


def test_a_reader_that_stops_early_is_a_failure() -> None:
    with pytest.raises(CommandFailed):
        pipeline([["cat", "/dev/zero"], ["true"]], deadline=soon(30), op="t")


def test_a_pipe_of_the_caller_closed_by_its_reader_is_a_failure() -> None:
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(CommandFailed):
        pipeline([shell("head -c 500000 /dev/zero")], deadline=soon(30), op="t", stdout=write)
    os.close(write)


def test_what_nobody_read_was_not_sent_though_its_writer_ended_well() -> None:
    """It wrote to a pipe of ours, and ended before the reader was seen to be gone."""
    read, write = os.pipe()
    os.close(read)
    try:
        with pytest.raises(CommandFailed, match="the reader closed the stream after 0 bytes"):
            pipeline([["echo", "all of it"]], deadline=soon(30), op="t", stdout=write)
    finally:
        os.close(write)


def test_silence_is_given_up_long_before_the_deadline() -> None:
    before = monotonic()
    with pytest.raises(TimedOut, match="stalled"):
        pipeline([shell("echo x; sleep 60"), ["cat"]], deadline=soon(60), op="t", stall_s=0.3)
    assert monotonic() - before < patient(30)


def test_a_reader_that_does_not_read_is_a_stall_too() -> None:
    with pytest.raises(TimedOut, match="stalled"):
        pipeline([["cat", "/dev/zero"], ["sleep", "60"]], deadline=soon(60), op="t", stall_s=0.3)


def test_a_stream_that_stands_still_is_given_up_for_a_reason() -> None:
    asked: list[float] = []

    def give_up(idle_s: float) -> str | None:
        asked.append(idle_s)
        return "somebody else waits" if idle_s > 0.5 else None

    before = monotonic()
    with pytest.raises(TimedOut, match="t: somebody else waits, killed after 2 bytes"):
        pipeline(
            [shell("echo x; sleep 60"), ["cat"]],
            deadline=soon(60),
            op="t",
            stall_s=50,
            give_up=give_up,
        )
    assert monotonic() - before < patient(30)
    assert max(asked) > 0.5


def test_a_stream_that_moves_is_never_given_up() -> None:
    slow = shell("for i in 1 2 3 4 5 6 7 8; do echo x; sleep 0.2; done")
    moved = pipeline(
        [slow, ["cat"]],
        deadline=soon(30),
        op="t",
        give_up=lambda idle_s: "it stands still" if idle_s > patient(1.0) else None,
    )
    assert moved == 16


def test_work_after_the_last_byte_is_no_stall() -> None:
    stall_s = patient(0.2)
    pipeline(
        [["echo", "x"], shell(f"cat; sleep {3 * stall_s}")],
        deadline=soon(30),
        op="t",
        stall_s=stall_s,
    )


def test_at_the_deadline_all_stages_and_their_children_die(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(TimedOut):
        pipeline([shell(script), ["cat"]], deadline=soon(0.4), op="t")
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_missing_later_stage_leaves_nothing_behind(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CommandFailed, match="can't be started"):
        pipeline([["sleep", "60"], ["no-such-program"]], deadline=soon(30), op="t")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_pipeline_can_be_made_to_fail() -> None:
    with failing("send:x"), pytest.raises(CommandFailed):
        pipeline([["true"]], deadline=soon(30), op="send:x")


RECEIVER = """
read header; echo "go $header"
head -c 100000 | wc -c
cat > /dev/null
echo finished
"""


def test_a_conversation_takes_lines_then_a_stream_then_answers() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Conversation(shell(RECEIVER), op="t") as conversation:
        conversation.send_line("header", soon(30))
        assert conversation.read_line(soon(30)) == "go header"
        sender = shell("head -c 100000 /dev/zero")
        assert (
            pipeline([sender], deadline=soon(30), op="t", stdout=conversation.stdin_fd) == 100_000
        )
        assert conversation.read_line(soon(30)).strip() == "100000"
        conversation.close_stdin()
        assert conversation.read_line(soon(30)) == "finished"
        assert conversation.finish(soon(30)).returncode == 0
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_silent_partner_is_given_up_at_the_deadline_and_killed(tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/pid; sleep 60"
    with (
        pytest.raises(TimedOut, match="no answer"),
        Conversation(shell(script), op="t") as conversation,
    ):
        conversation.read_line(soon(0.4))
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_partner_that_ends_instead_of_answering_is_quoted() -> None:
    script = "echo 'Permission denied (publickey).' >&2; exit 255"
    with Conversation(shell(script), op="ssh:c2") as conversation:
        with pytest.raises(CommandFailed, match="status 255: Permission denied") as caught:
            conversation.read_line(soon(30))
        assert caught.value.returncode == 255


def test_speaking_to_a_partner_that_has_gone_is_a_failure() -> None:
    conversation = Conversation(shell("exec <&-; exit 9"), op="t")
    with conversation, pytest.raises(CommandFailed, match="status 9"):
        for _ in range(1000):
            conversation.send_line("x" * 1000, soon(30))


def test_a_partner_that_does_not_listen_is_given_up() -> None:
    conversation = Conversation(["sleep", "60"], op="t")
    with conversation, pytest.raises(TimedOut, match="does not read"):
        conversation.send_line("x" * 1_000_000, Deadline.after(0.4))


def test_a_line_without_end_is_refused() -> None:
    conversation = Conversation(["cat", "/dev/zero"], op="t")
    with conversation, pytest.raises(CommandFailed, match="more than 65536 bytes"):
        conversation.read_line(soon(30))


def test_a_bad_end_after_good_answers_is_a_failure() -> None:
    with Conversation(shell("echo ok; cat; exit 5"), op="t") as conversation:
        assert conversation.read_line(soon(30)) == "ok"
        with pytest.raises(CommandFailed, match="status 5"):
            conversation.finish(soon(30))
