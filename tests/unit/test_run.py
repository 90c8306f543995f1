from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from standfast.errors import CommandFailed, TimedOut
from standfast.system import run as run_module
from standfast.system.clock import Deadline, monotonic, sleep
from standfast.system.run import TOO_LATE, exec_before, run
from tests.support.pace import patient
from tests.support.waiting import soon
from tests.unit.failing import failing
from tests.unit.processes import wait_until_gone


def sh(script: str, **options: object) -> run_module.Completed:
    settings: dict[str, object] = {"deadline": soon(30), "op": "test", **options}
    return run(["/bin/sh", "-c", script], **settings)  # type: ignore[arg-type]


def test_output_status_and_words_of_a_command_come_back() -> None:
    done = sh("echo out; echo err >&2; exit 3", check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


def test_input_longer_than_a_pipe_reaches_the_command() -> None:
    assert run(["wc", "-c"], deadline=soon(30), op="t", input="x" * 300_000).stdout.strip() == (
        "300000"
    )


def test_the_last_words_of_a_program_do_nothing_to_a_terminal() -> None:
    """They may be another machine's: ssh passes on what is printed there."""
    words = "printf '\\033]0;title\\007no\\r\\nw\\302\\205\\342\\200\\250ay\\n' >&2; exit 3"
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", words], deadline=Deadline.after(patient(20)), op="odd")
    assert str(caught.value) == "odd: sh ended with status 3: ?]0;title?no; w??ay"
    assert str(caught.value).isprintable()


def test_a_failure_names_operation_program_status_and_last_words() -> None:
    with pytest.raises(CommandFailed) as caught:
        sh("echo first >&2; echo 'target is busy' >&2; exit 32", op="umount:demote")
    assert str(caught.value) == "umount:demote: /bin/sh ended with status 32: first; target is busy"
    assert caught.value.returncode == 32


def test_a_failure_tells_the_last_lines_that_say_something() -> None:
    said = "nope; no; Error: syntax error, unexpected string; inet filter drop; ^^^^^^"
    with pytest.raises(CommandFailed) as caught:
        sh(f"echo '{said}' | sed 's/; /\\n/g' >&2; echo >&2; exit 1", op="nft")
    last = "no; Error: syntax error, unexpected string; inet filter drop"
    assert str(caught.value) == f"nft: /bin/sh ended with status 1: {last}"
    with pytest.raises(CommandFailed) as caught:
        sh("head -c 5000 /dev/zero | tr '\\0' x >&2; exit 1", op="t")
    assert len(str(caught.value)) < 400


def test_a_death_by_signal_is_said_as_such() -> None:
    with pytest.raises(CommandFailed, match=r"was killed by signal 9 \(Killed\)"):
        sh("kill -9 $$")


def test_a_missing_program_is_named() -> None:
    with pytest.raises(CommandFailed, match="no-such-program can't be started") as caught:
        run(["no-such-program"], deadline=soon(30), op="t")
    assert caught.value.returncode == 127


def test_at_the_deadline_the_grandchildren_die_too(tmp_path: Path) -> None:
    with pytest.raises(TimedOut, match="before its deadline and was killed"):
        sh(f"sleep 60 & echo $! > {tmp_path}/pid; sleep 60", deadline=soon(0.3))
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_grandchild_that_holds_the_pipes_delays_nothing(tmp_path: Path) -> None:
    before = monotonic()
    done = sh(f"sleep 60 & echo $! > {tmp_path}/pid; echo done")
    assert done.stdout == "done\n"
    assert monotonic() - before < patient(30)
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_passed_deadline_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(TimedOut, match="was not started"):
        sh(f"touch {tmp_path}/started", deadline=Deadline(monotonic() - 1))
    assert not (tmp_path / "started").exists()


def test_output_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "MAX_OUTPUT_BYTES", 100_000)
    with pytest.raises(CommandFailed, match="wrote more than 100000 bytes"):
        run(["yes"], deadline=soon(30), op="t")


def test_a_slow_writer_does_not_outlive_its_deadline() -> None:
    with pytest.raises(TimedOut):
        sh("while :; do echo x; sleep 0.02; done", deadline=Deadline.after(0.3))


def test_only_the_end_of_a_long_stderr_is_kept() -> None:
    done = sh("seq 100000 >&2")
    assert done.stderr.endswith("99999\n100000\n")
    assert len(done.stderr) <= run_module.TAIL_BYTES


def test_neither_environment_nor_input_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sh('test -n "$TOKEN"', env={"TOKEN": "secret-1"}, input="secret-2")
    assert "/bin/sh" in caplog.text
    assert "secret" not in caplog.text


def test_messages_are_in_english_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert sh("echo $LC_ALL").stdout == "C\n"


def test_exactly_one_operation_can_be_made_to_fail() -> None:
    with failing("umount:demote", times=1):
        sh("true", op="umount:promote")
        with pytest.raises(CommandFailed, match="made to fail"):
            sh("true", op="umount:demote")
        sh("true", op="umount:demote")
    assert run_module.hook is None


def test_no_descriptor_is_left_open() -> None:
    sh("true", input="x")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        sh("true", input="x")
        with pytest.raises(TimedOut):
            sh("sleep 5", deadline=Deadline.after(0.05))
        exec_before(monotonic() + patient(5), ["true"], op="t")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_exec_before_gives_status_and_output() -> None:
    done = exec_before(monotonic() + patient(5), ["sh", "-c", "echo o; echo e >&2; exit 4"], op="t")
    assert (done.stdout, done.stderr, done.returncode) == ("o\n", "e\n", 4)


def test_exec_before_starts_nothing_when_it_is_too_late(tmp_path: Path) -> None:
    done = exec_before(monotonic() - 0.001, ["touch", str(tmp_path / "x")], op="t")
    assert done.returncode == TOO_LATE
    assert not (tmp_path / "x").exists()


def test_exec_before_kills_a_program_that_is_still_at_it() -> None:
    before = monotonic()
    done = exec_before(before + patient(0.4), ["sleep", "30"], op="t")
    assert done.returncode == -signal.SIGALRM
    assert monotonic() < before + patient(15)


def test_exec_before_kills_a_stopped_program_whose_timer_can_not() -> None:
    done = exec_before(monotonic() + patient(0.3), ["sh", "-c", "kill -STOP $$"], op="t")
    assert done.returncode == -signal.SIGKILL


def test_exec_before_is_not_talked_out_of_its_timer_by_the_caller() -> None:
    """An ignored or blocked SIGALRM is inherited through exec: the child must undo both."""
    previous = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    try:
        done = exec_before(monotonic() + patient(0.3), ["sleep", "30"], op="t")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        signal.signal(signal.SIGALRM, previous)
    assert done.returncode == -signal.SIGALRM


def test_exec_before_leaves_the_callers_timer_and_handlers_alone() -> None:
    def handler(*_: object) -> None: ...

    previous = signal.signal(signal.SIGALRM, handler)
    timer = signal.setitimer(signal.ITIMER_REAL, 1000.0)
    try:
        exec_before(monotonic() + patient(5), ["true"], op="t")
        left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, *timer)
        assert 500 < left_s <= 1000 and interval_s == 0
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, previous)


def test_exec_before_works_from_a_thread() -> None:
    codes: list[int] = []

    def arm() -> None:
        codes.append(exec_before(monotonic() + patient(5), ["true"], op="t").returncode)

    thread = threading.Thread(target=arm)
    thread.start()
    thread.join(patient(30))
    assert codes == [0]


ON_THE_WAY = (
    (run_module, "monotonic"),
    (signal, "signal"),
    (signal, "setitimer"),
    (signal, "pthread_sigmask"),
    (os, "dup2"),
    (os, "execv"),
)
"""What the process calls that becomes the program."""


def test_exec_before_stopped_anywhere_never_acts_late(tmp_path: Path) -> None:
    """Stopped before each of its calls and let go after `latest`, the program must do nothing."""
    seconds, number = 0.2, 0
    while True:
        mark = tmp_path / f"mark-{number}"
        latest = monotonic() + seconds
        pid = os.fork()
        if pid == 0:
            stopped_before(number)
            os._exit(exec_before(latest, ["touch", str(mark)], op="t").returncode & 0xFF)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            if os.waitstatus_to_exitcode(status) == 0:
                break  # there is no call of this number
            seconds *= 2  # the machine was too slow for it to begin in time
            assert seconds < 60
            continue
        sleep(latest + 0.01 - monotonic())
        assert not mark.exists()
        # It goes on first: what started it would kill it.
        child = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        os.kill(child, signal.SIGCONT)
        wait_until_gone(child)
        os.kill(pid, signal.SIGCONT)
        os.waitpid(pid, 0)
        assert not mark.exists(), f"stopped before call {number}, it acted late"
        number += 1
    assert mark.exists() and number >= len(ON_THE_WAY)


def stopped_before(number: int) -> None:
    """From now on each child of this process stops itself, and this one, before that call."""
    os.setpgid(0, 0)
    here, left = os.getpid(), number

    def stopping(call: Callable[..., object]) -> Callable[..., object]:
        def stop_or_call(*arguments: object) -> object:
            nonlocal left
            if os.getpid() != here:
                left -= 1
                if left == -1:
                    os.killpg(here, signal.SIGSTOP)
            return call(*arguments)

        return stop_or_call

    for module, name in ON_THE_WAY:
        setattr(module, name, stopping(getattr(module, name)))
