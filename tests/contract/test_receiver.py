"""`standfast receive` that hands over to `standfast receiver`: real processes and a real socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from standfast import __version__
from standfast.cli.receive import INSTALLED, VARIABLE
from standfast.cli.receiver import (
    LEAST_OF_ONE,
    MOST_OF_ONE,
    MOST_OF_VOLUME,
    Resident,
    Session,
    most_of_one,
)
from standfast.errors import Refused
from standfast.reasons import Reason
from standfast.replication import wire
from tests.support.checkout import CHECKOUT
from tests.support.pace import patient
from tests.support.replication_bed import MIB, STANDFAST, VOLUME, Bed, bed
from tests.support.volumes import require_btrfs
from tests.support.waiting import wait_for

DONE_HERE = "check `cluster` in both configurations"
HELLO = wire.dump(wire.Hello("another", VOLUME, "a", wire.Purpose.SEND)) + "\n"


@pytest.fixture(scope="module")
def place() -> Iterator[Bed]:
    require_btrfs()
    with bed({"a": 256 * MIB, "b": 256 * MIB, "c": 256 * MIB}) as place:
        subprocess.run(["btrfs", "-q", "subvolume", "create", place.live("a")], check=True)
        yield place


@pytest.fixture
def beside(place: Bed) -> dict[str, str]:
    """The environment of a `standfast receive` that alone could do nothing."""
    return {
        **place.environment("b"),
        "STANDFAST_CONFIG_DIR": "/nowhere",
        VARIABLE: place.receiver_socket("b"),
    }


def receiving(
    environment: dict[str, str], volume: str = VOLUME, bound: str | None = None
) -> subprocess.Popen[str]:
    words = [] if bound is None else ["--from", bound]
    return subprocess.Popen(
        [str(STANDFAST), "receive", volume, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def until(true: Callable[[], bool], what: str) -> None:
    wait_for(true, 30, what)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident(place: Bed) -> int:
    """The process behind b's socket, which a first conversation has started."""
    said = receiving({**place.environment("b"), VARIABLE: place.receiver_socket("b")})
    said.communicate(HELLO, timeout=patient(60))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(place.receiver_socket("b"))
        assert connection.recv(4096) == INSTALLED
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(raw[:4], sys.byteorder)


def test_a_cycle_arrives_by_the_process_that_is_loaded(place: Bed) -> None:
    (place.live("a") / "f").write_text("one")
    pid = resident(place)
    assert place.replicate("a", "b", full=True).full
    (place.live("a") / "f").write_text("two")
    assert not place.replicate("a", "b").full
    newest = max((place.mount("b") / "services-standby").glob("services@*"))
    assert (newest / "f").read_text() == "two"
    until(lambda: children(pid) == [], "every conversation has ended")


def test_what_is_refused_is_told_as_without_it(place: Bed, beside: dict[str, str]) -> None:
    resident(place)
    apart = {**place.environment("b"), VARIABLE: ""}
    told = []
    for environment in (beside, apart):
        process = receiving(environment)
        out, log = process.communicate(HELLO, timeout=patient(60))
        assert DONE_HERE in out
        assert "refused: protocol" in log
        assert not log.startswith("<"), "a priority for the journal, which the sender doesn't read"
        told.append((out, process.returncode))
    assert told[0] == told[1]


def test_what_sshd_was_asked_for_is_passed_on(place: Bed, beside: dict[str, str]) -> None:
    process = receiving({**beside, "SSH_ORIGINAL_COMMAND": "rm -rf /"})
    out, _ = process.communicate("", timeout=patient(60))
    assert "asked was 'rm -rf /'" in out
    assert process.returncode == 1


def test_an_error_has_its_own_exit_status(beside: dict[str, str]) -> None:
    process = receiving(beside, "no-such-volume")
    out, _ = process.communicate("", timeout=patient(60))
    assert "no-such-volume" in out
    assert process.returncode == 2


def test_conversations_do_not_wait_for_each_other(place: Bed, beside: dict[str, str]) -> None:
    pid = resident(place)
    silent = receiving(beside)
    until(lambda: len(children(pid)) == 1, "it was taken over")
    other = receiving(beside)
    out, _ = other.communicate(HELLO, timeout=patient(60))
    assert "refusal" in out
    assert silent.poll() is None
    silent.communicate("", timeout=patient(60))
    assert silent.returncode == 1


def test_whose_key_it_is_is_passed_on(place: Bed, beside: dict[str, str]) -> None:
    over_ssh = {**beside, "SSH_CONNECTION": "127.0.0.9 40000 127.0.0.2 22"}
    for bound, told in (("c", '"bound": "c"'), ("a", "check `cluster`"), (None, "says more")):
        out, log = receiving(over_ssh, bound=bound).communicate(HELLO, timeout=patient(60))
        assert told.replace(": ", ":", 1) in out or told in out, (bound, out)
        if bound != "a":
            assert "cluster" not in out + log, "it is no stranger's business"


def test_each_volume_has_a_place_for_its_cycle_and_for_a_question_to_it() -> None:
    assert [most_of_one(volumes) for volumes in (0, 1, 4)] == [LEAST_OF_ONE] * 3
    assert [most_of_one(volumes) for volumes in (5, 9, 16)] == [10, 18, 32]
    assert most_of_one(1000) == MOST_OF_ONE
    unit = (CHECKOUT / "systemd/standfast-receive.service").read_text()
    assert "TasksMax=400\n" in unit and 2 * MOST_OF_ONE * 6 < 400


def test_with_many_volumes_a_sender_has_more_places(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As many as are configured now: a volume may come while this process runs."""
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path))
    with socket.socket() as listener:
        resident = Resident(listener)
        for number in range(LEAST_OF_ONE):
            session = Session(listener, 0, 0, "c", "v")
            resident._sessions |= {2 * number: session, 2 * number + 1: session}
        assert not resident._has_place("c") and resident._has_place("a")
        for number in range(9):
            (tmp_path / f"v{number}.toml").touch()
        assert resident._has_place("c")


def test_no_key_takes_the_places_of_the_others_and_one_too_many_is_busy(
    place: Bed, beside: dict[str, str]
) -> None:
    pid = resident(place)
    until(lambda: children(pid) == [], "the ones before have ended")
    configured = place.directory("b") / f"{VOLUME}.toml"
    volumes = [VOLUME, *(f"another{n}" for n in range(LEAST_OF_ONE // MOST_OF_VOLUME))]
    with contextlib.ExitStack() as stack:
        for volume in volumes[1:]:
            another = configured.with_name(f"{volume}.toml")
            another.write_text(configured.read_text())
            stack.callback(another.unlink)
        silent: list[subprocess.Popen[str]] = []

        def takes_a_place(bound: str | None, volume: str = VOLUME) -> bool:
            process = stack.enter_context(receiving(beside, volume, bound))
            stack.callback(process.kill)
            until(
                lambda: process.poll() is not None or len(children(pid)) == len(silent) + 1,
                "it has a place, or was told that there is none",
            )
            if process.poll() is None:
                silent.append(process)
                return True
            assert process.stdout is not None
            line = process.stdout.read()
            with pytest.raises(Refused, match="try again") as refusal:
                wire.parse(line, wire.Welcome)
            assert refusal.value.reason is Reason.BUSY and process.returncode == 1
            return False

        for volume in volumes[:-1]:
            assert all(takes_a_place("c", volume) for _ in range(MOST_OF_VOLUME))
            assert not takes_a_place("c", volume)
        assert len(silent) == LEAST_OF_ONE and not takes_a_place("c", volumes[-1])
        for bound in ("a", None, "a", None, "a", None, "a", None):
            assert takes_a_place(bound), "there are places for others"
        assert len(silent) == 2 * LEAST_OF_ONE and not takes_a_place("a")
    until(lambda: children(pid) == [], "all have ended")


def test_who_is_gone_takes_its_conversation_along(place: Bed, beside: dict[str, str]) -> None:
    pid = resident(place)
    process = receiving(beside)
    until(lambda: len(children(pid)) == 1, "it was taken over")
    process.kill()
    until(lambda: children(pid) == [], "what was handed over has ended")
    process.communicate(timeout=patient(60))


def test_a_conversation_that_is_killed_is_a_failure(place: Bed, beside: dict[str, str]) -> None:
    pid = resident(place)
    process = receiving(beside)
    until(lambda: len(children(pid)) == 1, "it was taken over")
    os.kill(children(pid)[0], signal.SIGKILL)
    process.communicate(timeout=patient(60))
    assert process.returncode == 1


def test_other_users_are_not_let_in(place: Bed) -> None:
    resident(place)
    path = Path(place.receiver_socket("b"))
    place.root.chmod(0o755)
    path.chmod(0o666)
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); "
        "s.settimeout(30); s.connect(sys.argv[1]); sys.stdout.write(repr(s.recv(100)))"
    )
    try:
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", program, path],
            capture_output=True,
            text=True,
            timeout=patient(60),
        )
    finally:
        path.chmod(0o600)
        place.root.chmod(0o700)
    assert done.stdout == "b''", done.stderr


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (b"", DONE_HERE),
        (b"0.0.0", DONE_HERE),
        (__version__.encode(), DONE_HERE),
        (None, '"busy"'),
    ],
    ids=["it closes", "another version", "another build of this version", "nothing"],
)
def test_where_nobody_takes_it_over_it_is_done_here_and_where_nobody_has_time_not_at_all(
    place: Bed, tmp_path: Path, says: bytes | None, told: str
) -> None:
    """The configuration is there this time."""
    path = str(tmp_path / "odd.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                if says:
                    connection.send(says)
                if says is None:
                    connection.recv(100)  # until the other one gives up

        thread = threading.Thread(target=answer)
        thread.start()
        process = receiving({**place.environment("b"), VARIABLE: path})
        out, _ = process.communicate(HELLO, timeout=patient(60))
        thread.join()
    assert told in out


def test_when_what_is_loaded_is_killed_its_conversations_fail_and_the_next_is_done_here(
    place: Bed, beside: dict[str, str]
) -> None:
    """The last one with b's process, which no service manager starts again here."""
    pid = resident(place)
    process = receiving(beside)
    until(lambda: len(children(pid)) == 1, "it was taken over")
    [child] = children(pid)
    os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=patient(60))
    assert process.returncode == 1
    with suppress(ProcessLookupError):  # it may have noticed by itself
        os.kill(child, signal.SIGKILL)  # as systemd does with a service's processes
    place.replicate("a", "b")


def test_without_a_socket_it_says_how_it_is_started() -> None:
    done = subprocess.run([STANDFAST, "receiver"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "systemctl enable --now standfast-receive.socket" in done.stderr
