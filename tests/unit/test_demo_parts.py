"""The demo's stand-ins and its bookkeeping, without the whole of it."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.config.load import load
from standfast.config.model import Config
from standfast.demo.cluster import free_port
from standfast.demo.commands import handler, run_module
from standfast.demo.ledger import LINE_BYTES, Ledger, Line, line_text, missing
from standfast.demo.nodes import VOLUME, Place, config_text
from standfast.demo.screen import NodeRow, Screen, node_line
from standfast.demo.stand_ins.directory import DirectoryStore, initialise
from standfast.demo.stand_ins.embedded import EmbeddedNfs, EmbeddedUnits
from standfast.demo.stand_ins.fence import fence_of
from standfast.demo.stand_ins.file_calls import Session, Stale
from standfast.demo.stand_ins.file_server import Files, FileServer, export_file
from standfast.errors import CommandFailed, Refused, StandfastError, Unreachable
from standfast.node.own_epoch import OwnEpoch, Stage
from standfast.system.clock import monotonic
from standfast.system.run import kill_group, start_detached
from tests.support.pace import patient
from tests.support.waiting import soon, wait_for

PLACES = (
    Place("zippy", "127.0.0.1", "http://127.0.0.1:1"),
    Place("c1", "127.0.0.2", "http://127.0.0.1:1"),
)


@pytest.fixture
def root() -> Iterator[Path]:
    """A path short enough for a socket below it."""
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        yield Path(directory)


@pytest.fixture
def config(root: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """zippy's, on a Consul that nobody answers at."""
    etc = root / "zippy" / "etc"
    etc.mkdir(parents=True)
    path = etc / f"{VOLUME}.toml"
    path.write_text(config_text(PLACES[0], PLACES, root, free_port(("127.0.0.1",))))
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(etc))
    return load(path)


@pytest.fixture
def session(config: Config) -> Iterator[Session]:
    """A stand-in server in this process, with its port open for long."""
    initialise(config.paths.live)
    OwnEpoch(4, Stage.READY, "f", None, in_place=False).save(config.state_dir)
    EmbeddedNfs(config).export("fsid-1")
    fence_of(config).arm(monotonic() + patient(60.0), monotonic() + patient(60.0))
    files = Files(config, fence_of(config), DirectoryStore(config.paths))
    with FileServer(config, files) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with Session(config.me.address, config.nfs.port, soon(10.0)) as connection:
            yield connection
        server.shutdown()


# The configuration and the handlers


def test_the_generated_configuration_obeys_every_rule(config: Config) -> None:
    assert config.lease.wait == 4.1
    assert config.standbys == ("c1",)


def test_every_deployed_handler_is_found() -> None:
    for name in ("data-services-changed", "storage-role-changed", "nfs-server-guard"):
        assert Path(handler(name)).name == name
    with pytest.raises(StandfastError, match="no-such-handler"):
        handler("no-such-handler")


def test_the_handler_is_that_of_the_installation_and_no_wrapper_of_the_interpreters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nixpkgs has it: the interpreter sees the installation by links, and wraps its programs."""
    name = "data-services-changed"
    for place in ("library/bin", "environment/bin"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / name).touch()
    packages = "lib/python3.13/site-packages"
    module = tmp_path / "library" / packages / "standfast/demo/commands.py"
    module.parent.mkdir(parents=True)
    module.touch()
    (tmp_path / "environment" / packages).parent.mkdir(parents=True)
    (tmp_path / "environment" / packages).symlink_to(tmp_path / "library" / packages)
    monkeypatch.setattr("sys.executable", str(tmp_path / "environment/bin/python"))
    seen = tmp_path / "environment" / packages / "standfast/demo/commands.py"
    assert handler(name, seen) == str(tmp_path / "library/bin" / name)


# The stand-in server


def test_what_is_written_is_read_back_and_each_answer_carries_its_epoch(session: Session) -> None:
    fsid = session.mount(soon(10.0))
    reply = session.write(fsid, ("journal", 5), "hello", soon(10.0))
    assert reply["epoch"] == 4
    assert reply["at"] <= monotonic()
    assert session.read(fsid, ("journal", 5), 5, soon(10.0)) == "hello"


def test_a_file_system_of_another_epoch_is_stale(session: Session, config: Config) -> None:
    fsid = session.mount(soon(10.0))
    EmbeddedNfs(config).export("fsid-2")
    with pytest.raises(Stale):
        session.write(fsid, ("journal", 0), "x", soon(10.0))


def test_a_shut_port_cuts_the_connection_without_an_answer(
    session: Session, config: Config
) -> None:
    session.null(soon(10.0))
    fence_of(config).ensure_closed()
    with pytest.raises(Unreachable, match="cut the connection"):
        session.write("fsid-1", ("journal", 0), "x", soon(10.0))
    assert not (config.paths.live / "journal").exists()


def test_a_lease_that_ends_during_a_request_leaves_it_unanswered(
    session: Session, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: Files, name: str, offset: int, text: str) -> dict[str, object]:
        fence_of(config).ensure_closed()
        return {"ok": True}

    monkeypatch.setattr(Files, "_write", slow)
    with pytest.raises(Unreachable, match="cut the connection"):
        session.write("fsid-1", ("journal", 0), "x", soon(10.0))


def test_nobody_is_let_in_while_the_port_is_shut(config: Config, root: Path) -> None:
    initialise(config.paths.live)
    OwnEpoch(4, Stage.READY, "f", None, in_place=False).save(config.state_dir)
    EmbeddedNfs(config).export("fsid-1")
    argv = run_module("standfast.demo.stand_ins.file_server", config.volume)
    fence, me = fence_of(config), (config.me.address, config.nfs.port)

    def is_in() -> bool:
        with contextlib.suppress(StandfastError), Session(*me, soon(1.0)) as session:
            return bool(session.null(soon(1.0)))
        return False

    server = start_detached(argv, op="server", log_file=root / "log")
    try:
        wait_for(EmbeddedNfs(config).is_running, 20.0, "the server runs")
        for _ in range(2):
            with pytest.raises(Unreachable, match="refused"):
                Session(*me, soon(1.0))
            fence.arm(monotonic() + patient(60.0), monotonic() + patient(60.0))
            wait_for(is_in, 20.0, "the port is open")
            fence.ensure_closed()
            wait_for(lambda: not is_in(), 20.0, "the port is shut")
    finally:
        kill_group(server)


@pytest.mark.parametrize("name", ["../etc", "a/b", ".hidden", "", "x" * 200])
def test_a_name_that_leads_elsewhere_is_refused(session: Session, name: str) -> None:
    with pytest.raises(StandfastError, match="no such file"):
        session.write("fsid-1", (name, 0), "x", soon(10.0))


def test_a_read_only_tree_and_a_missing_export_are_not_written(
    session: Session, config: Config
) -> None:
    DirectoryStore(config.paths).set_live_writable(False)
    with pytest.raises(StandfastError, match="read-only"):
        session.write("fsid-1", ("journal", 0), "x", soon(10.0))
    EmbeddedNfs(config).unexport()
    assert not export_file(config).exists()
    with pytest.raises(StandfastError, match="not exported"):
        session.null(soon(10.0))


# Starting and stopping


def test_the_server_is_not_started_without_a_yes_of_the_guard(config: Config) -> None:
    nfs = EmbeddedNfs(config)
    with pytest.raises(Refused, match=r"127\.0\.0\.1:1"):
        nfs.start(soon(15.0))
    assert not nfs.is_running()
    assert nfs.check(soon(10.0)) == "the stand-in server does not run"
    nfs.stop(soon(10.0))


def test_a_lease_process_that_ends_at_its_start_is_an_error_with_its_last_words(
    config: Config,
) -> None:
    units = EmbeddedUnits(config)
    unit = f"standfast-lease@{VOLUME}.service"
    with pytest.raises(CommandFailed, match="ended with status 3 at its start: standfast: "):
        units.start(unit, soon(15.0))
    assert not units.is_active(unit)
    units.stop(unit, soon(10.0))
    with pytest.raises(StandfastError, match="no unit nfs-server"):
        units.is_active("nfs-server.service")


# The ledger and the view


def line(number: int, at: float = 0.0) -> Line:
    return Line(number, line_text(number, number * 7), 1, "zippy", at)


def test_lines_are_looked_for_byte_by_byte_in_their_place() -> None:
    lines = [line(number) for number in range(4)]
    content = "".join(written.text for written in lines).encode()
    assert len(content) == 4 * LINE_BYTES
    assert missing(content, lines) == []
    assert missing(content[: 3 * LINE_BYTES - 1], lines) == [2, 3]
    assert missing(b"\0" * LINE_BYTES + content[LINE_BYTES:], lines) == [0]
    assert missing(content.replace(b"line 000001", b"line 000009"), lines) == [1]


def test_the_ledger_knows_what_was_acknowledged_before_and_the_longest_pause() -> None:
    ledger = Ledger()
    for number, at in enumerate((1.0, 2.0, 5.0, 5.5)):
        ledger.add(line(number, at))
    assert [acknowledged.number for acknowledged in ledger.before(5.0)] == [0, 1]
    assert ledger.longest_pause(0.0, 10.0) == 3.0
    assert ledger.longest_pause(5.0, 10.0) == 0.5


def test_a_log_file_gets_one_line_for_each_change_of_roles_and_no_escape() -> None:
    out = io.StringIO()
    screen = Screen(out, monotonic())
    rows = [NodeRow("zippy", "127.0.0.1", False, None, None)]
    for _ in range(3):
        screen.table(rows, "client")
    screen.say("hello\nthere", mark="!")
    screen.close()
    screen.say("too late")
    assert "\033" not in out.getvalue()
    assert [text.split("] ")[-1] for text in out.getvalue().splitlines()] == [
        "= zippy OFF",
        "! hello",
        "            there",
    ]


def test_a_terminal_gets_a_table_that_is_drawn_over() -> None:
    out = io.StringIO()
    screen = Screen(out, monotonic(), live=True)
    rows = [NodeRow("c1", "127.0.0.2", True, 3, {"role": "primary", "lease_remaining_s": 1.5})]
    screen.table(rows, "client 5 lines")
    screen.table(rows, "client 6 lines")
    screen.close()
    assert out.getvalue().count("\033[3A\r\033[J") == 2
    assert "SERVES epoch 3" in node_line(rows[0])


@pytest.mark.parametrize("isolated", [False, True])
def test_a_process_of_the_demo_loads_nothing_of_the_directory_it_is_run_in(
    tmp_path: Path, isolated: bool
) -> None:
    (tmp_path / "standfast.py").write_text("print('planted')")
    ask = "from standfast.demo.commands import command; print(*command('standfast', '--version'))"
    flags = ["-I"] if isolated else []
    told = subprocess.run(
        [sys.executable, *flags, "-c", ask], capture_output=True, text=True, timeout=patient(30.0)
    )
    words = told.stdout.split()
    assert ("-I" in words) is isolated
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=patient(30.0)
    )
    assert done.returncode == 0 and done.stdout.startswith("standfast "), done
