from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from standfast.config.model import Config, Nfs, Paths
from standfast.errors import CommandFailed, Refused, StandfastError
from standfast.nfs import kernel as nfs_module
from standfast.nfs.as_client import LooksUp, MountdSilent
from standfast.nfs.ganesha import GaneshaNfs, export_block
from standfast.nfs.kernel import KernelNfs, escaped
from standfast.nfs.state import settings
from standfast.nfs.unit import reason_in
from standfast.reasons import Reason
from standfast.system.clock import Deadline
from standfast.system.systemd import JournalLine, SystemdUnits, parse_journal
from tests.fakes.clock import stop_the_clock
from tests.support.configs import config_of
from tests.support.scripts import script as write_script
from tests.support.waiting import soon

FSID = "6b1f1d5e-6d3e-4a8c-9c57-0c7a3b9e2f10"
REFUSAL = """ERROR: Another NFS server is already active at 192.168.1.3
This host (192.168.1.2) is configured as NFS server but should be standby.
To fix:
  1. If this is intentional (failback), first demote the other server"""


FOLLOW = 'if [ "$1" = -r ]; then cat exports.d/*.exports > etab 2> /dev/null || true; fi'
"""What `exportfs -r` does: one line for all clients will do."""
ANOTHER_S_ERROR = "exportfs: /etc/exports.d/else.exports:1: syntax error: bad option list"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_of(
        "zippy",
        volume="data",
        paths=Paths(
            live=tmp_path / "persist/my services",
            bind=tmp_path / "data/services",
            state=tmp_path / "state",
        ),
        nfs=Nfs(clients=("192.168.1.0/24", "c9"), ganesha_exports=tmp_path / "ganesha"),
    )


def answers(
    monkeypatch: pytest.MonkeyPatch,
    mountd: StandfastError | None = None,
    client: str | None = None,
) -> None:
    """What is said to who asks as a client does; tests/unit/test_as_client.py has how."""

    def ask(*_: Any, **__: Any) -> None:
        if mountd is not None:
            raise mountd

    monkeypatch.setattr(nfs_module, "ask_mountd", ask)
    monkeypatch.setattr(LooksUp, "problem", lambda *_: client)


class FakeUnits:
    """A service manager whose starts and stops do what a test says."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.ended: set[str] = set()
        self.on_start: Callable[[], None] = lambda: None
        self.on_stop: Callable[[], None] = lambda: None
        self.said: list[JournalLine] = []
        self.wrong: str | None = None

    def reset_failed(self, unit: str, deadline: Deadline) -> None:
        """The guard's refusals are forgotten before each start."""

    def start(self, unit: str, deadline: Deadline) -> None:
        self.calls.append(f"start {unit}")
        self.on_start()
        self.ended.discard(unit)

    def stop(self, unit: str, deadline: Deadline) -> None:
        self.calls.append(f"stop {unit}")
        self.on_stop()

    def obstacle(self, unit: str) -> str | None:
        return self.wrong

    def has_ended(self, unit: str) -> bool:
        return unit in self.ended

    def kill(self, unit: str, deadline: Deadline) -> None:
        self.calls.append(f"kill {unit}")
        self.ended.add(unit)

    def journal(self, unit: str, since_utc: float, deadline: Deadline) -> list[JournalLine]:
        return self.said


class Host:
    """A machine with nfsd made of files, and programs made of scripts."""

    def __init__(self, config: Config, directory: Path) -> None:
        self.directory = directory
        self.live = config.paths.live
        self.units = FakeUnits()
        (directory / "nfsd").mkdir()
        self.threads(0)
        self.nfs = KernelNfs(
            config,
            self.units,
            etc=directory,
            exported=directory / "etab",
            nfsd=directory / "nfsd",
            settings=directory / "nfs.conf.d/standfast.conf",
            clients=directory / "main.sqlite",
            proc=directory / "proc",
        )

    @property
    def export_file(self) -> Path:
        return self.directory / "exports.d/standfast-data.exports"

    def threads(self, count: int) -> None:
        (self.directory / "nfsd/threads").write_text(f"{count}\n")

    def program(self, name: str, script: str) -> None:
        begin = f'cd {self.directory}\necho "{name} $*" >> calls'
        write_script(self.directory / "bin" / name, f"{begin}\n{script}")

    @property
    def calls(self) -> list[str]:
        path = self.directory / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def host(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(config, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    made.program("exportfs", FOLLOW)
    made.program("ss", "")
    made.program("rpc.nfsd", f"echo 0 > {tmp_path}/nfsd/threads")
    return made


def test_the_export_is_one_line_with_every_client_and_the_fsid(host: Host, config: Config) -> None:
    host.nfs.export(FSID)
    options = f"rw,sync,no_subtree_check,no_root_squash,fsid={FSID}"
    live = str(config.paths.live).replace(" ", "\\040")
    line = f"{live} 192.168.1.0/24({options}) c9({options})\n"
    assert host.export_file.read_text() == line
    assert host.calls == [], "nobody serves: nothing to refresh"


def test_nfs_conf_is_asked_ahead_and_the_file_is_named(host: Host) -> None:
    host.program("nfsconf", '[ "$3" != tcp ] || echo n')
    seen = next(each for each in host.nfs.obstacles() if each.check == "nfs-conf")
    assert "by /etc/nfs.conf (tcp=n)" in seen.evidence


def test_a_running_server_is_told_of_an_export_and_of_its_end(host: Host, config: Config) -> None:
    host.threads(8)
    host.nfs.export(FSID)
    assert host.calls == ["exportfs -r", "exportfs -f"]
    host.nfs.unexport()
    assert host.calls[2:] == ["exportfs -r", "exportfs -f"]
    assert not host.export_file.exists()
    unlocked = host.directory / "nfsd/unlock_filesystem"
    assert unlocked.read_text() == f"{config.paths.live}\n"
    host.nfs.unexport()


def test_what_a_power_cut_left_among_the_exports_goes(host: Host, config: Config) -> None:
    live = str(config.paths.live).replace(" ", "\\040")
    (host.directory / "etab").write_text(f"/else\tc9(rw)\n{live}\tc9(rw,fsid={FSID})\n")
    host.nfs.unexport()
    assert host.calls == ["exportfs -r"]
    (host.directory / "etab").unlink()
    host.nfs.unexport()
    assert host.calls == ["exportfs -r"]


def test_what_is_wrong_in_a_file_of_another_keeps_no_export_from_changing(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """exportfs does the rest and ends with EINVAL."""
    said = f"exportfs ended with status 22: {ANOTHER_S_ERROR}"
    host.program(
        "exportfs", f"{FOLLOW}; [ $1 = -f ] || {{ echo '{ANOTHER_S_ERROR}' >&2; exit 22; }}"
    )
    host.threads(8)
    for fsid in (FSID, OTHER_FSID):
        host.nfs.export(fsid)
        assert host.nfs.is_exported(fsid)
    host.nfs.unexport()
    assert host.calls == 3 * ["exportfs -r", "exportfs -f"]
    assert f"mend the exports that are named: exportfs:refresh: {said}" in caplog.text
    # With no server, too.
    (host.directory / "etab").write_text(f"{escaped(host.live)}\tc9(rw,fsid={FSID})\n")
    host.nfs.unexport()
    assert not host.nfs.would_export()


def test_an_export_that_did_not_change_is_told_in_the_words_of_exportfs(host: Host) -> None:
    said = f"exportfs ended with status 22: {ANOTHER_S_ERROR}"
    host.program("exportfs", f"[ $1 = -f ] || {{ echo '{ANOTHER_S_ERROR}' >&2; exit 22; }}")
    host.threads(8)
    with pytest.raises(StandfastError, match="is not exported") as caught:
        host.nfs.export(FSID)
    assert said in str(caught.value)
    (host.directory / "etab").write_text(f"{escaped(host.live)}\tc9(rw,fsid={FSID})\n")
    with pytest.raises(StandfastError, match="may still be exported, it is listed in") as caught:
        host.nfs.unexport()
    assert said in str(caught.value)
    assert not (host.directory / "nfsd/unlock_filesystem").exists()


ALL_FILES = 'if [ "$1" = -r ]; then cat exports exports.d/*.exports > etab; fi'


def test_a_leftover_export_of_the_same_path_is_named_with_its_line(host: Host) -> None:
    """A switchover that ends by it leaves the new primary sick until somebody takes it out."""
    live = escaped(host.live)
    (host.directory / "exports").write_text(f"# of before\n{live} c9(rw)\n")
    host.program("exportfs", ALL_FILES)
    host.threads(8)
    line = rf"another fsid than this epoch's: {host.directory}/exports:2 exports it, too"
    with pytest.raises(StandfastError, match=line) as caught:
        host.nfs.export(FSID)
    assert "take that out of the file, and run `exportfs -ra`" in str(caught.value)
    assert line in (host.nfs.check(soon(5)) or "")
    with pytest.raises(StandfastError, match=f"{host.directory}/exports:2 exports it, too"):
        host.nfs.unexport()
    (host.directory / "exports").write_text("")
    host.nfs.export(FSID)
    assert host.nfs.is_exported(FSID)


def test_an_export_that_no_file_has_is_one_by_hand(host: Host) -> None:
    host.program("exportfs", f"{FOLLOW}; printf '%s\\n' '{escaped(host.live)} c7' >> etab")
    host.threads(8)
    with pytest.raises(StandfastError, match=r"no file in .* says so: run `exportfs -ra`"):
        host.nfs.export(FSID)


def test_a_kernel_that_was_not_told_is_an_error(host: Host) -> None:
    host.program("exportfs", f"{FOLLOW}; [ $1 = -r ] || exit 1")
    host.threads(8)
    with pytest.raises(CommandFailed, match="exportfs:flush"):
        host.nfs.unexport()


def test_paths_are_escaped_as_exports_wants_them() -> None:
    assert escaped(Path('/a b/#c/"d')) == "/a\\040b/\\043c/\\042d"
    assert escaped(Path("/a\u2028b\x85c\xa0")) == "/a\u2028b\x85c\xa0", "no blanks of exportfs'"


UNFENCED = ["tcp 20490", "tcp 2049\ntcp 20490", "udp 204", "tcp 2049\nrdma 20049", "rdma 2049", "x"]
"""What the kernel says of listeners that the fence of port 2049 doesn't shut."""


def listens(host: Host, listeners: str) -> None:
    (host.directory / "nfsd/portlist").write_text(f"{listeners}\n")


@pytest.mark.parametrize("listeners", UNFENCED)
def test_nothing_is_exported_to_a_server_that_the_fence_does_not_shut(
    host: Host, listeners: str
) -> None:
    """[nfsd] in /etc/nfs.conf says where it listens, and nobody there knows of nfs.port."""
    host.threads(8)
    listens(host, listeners)
    with pytest.raises(StandfastError, match=r"the fence shuts tcp and udp 2049 alone") as caught:
        host.nfs.export(FSID)
    assert f"nfsd listens at {listeners.splitlines()[-1]} (" in str(caught.value)
    assert not host.export_file.exists()
    assert host.calls == []


def test_a_server_that_starts_where_the_fence_does_not_shut_it_is_a_failed_start(
    host: Host,
) -> None:
    host.nfs.export(FSID)

    def on_start() -> None:
        host.threads(8)
        listens(host, "tcp 20490\ntcp 20490")

    host.units.on_start = on_start
    with pytest.raises(StandfastError, match=r"nfsd listens at tcp 20490 \("):
        host.nfs.start(soon(5))


def test_a_server_that_the_fence_does_not_shut_is_not_well(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So this node doesn't vouch for it, and the role is surrendered."""
    answers(monkeypatch)
    host.threads(8)
    listens(host, "tcp 2049\nudp 2049\ntcp 2049\nudp 2049")
    host.nfs.export(FSID)
    assert host.nfs.check(soon(5)) is None
    for listeners in UNFENCED:
        listens(host, listeners)
        assert "the fence shuts tcp and udp 2049 alone" in (host.nfs.check(soon(5)) or "")


def test_while_a_stop_hangs_what_was_known_of_the_listeners_counts(host: Host) -> None:
    """The kernel tells nothing then, and the role has to be given up all the same."""
    path = host.directory / "nfsd/portlist"
    host.threads(8)
    for listeners, well in (("tcp 2049", True), ("tcp 20490", False)):
        listens(host, listeners)
        assert (host.nfs.unfenced() is None) is well
        path.unlink()
        os.mkfifo(path)
        try:
            assert (host.nfs.unfenced() is None) is well
        finally:
            path.write_text("")  # the look that hangs is let go
            path.unlink()


def test_a_list_of_listeners_that_can_not_be_read_says_nothing_good(host: Host) -> None:
    (host.directory / "nfsd/portlist").mkdir()
    host.threads(8)
    assert "where nfsd listens can't be read" in (host.nfs.check(soon(5)) or "")
    with pytest.raises(StandfastError, match="where nfsd listens"):
        host.nfs.export(FSID)


def test_a_started_server_has_threads(host: Host) -> None:
    host.units.on_start = lambda: host.threads(8)
    host.nfs.start(soon(5))
    assert host.nfs.is_running()


OTHER_FSID = "11111111-6d3e-4a8c-9c57-0c7a3b9e2f10"


def clients_known(host: Host, *names: str) -> sqlite3.Connection:
    """A database as nfsdcld keeps it, in use."""
    database = sqlite3.connect(host.directory / "main.sqlite")
    with database:
        for table in ("rec-0000000000000001", "rec-0000000000000002"):
            database.execute(f'CREATE TABLE "{table}" (id BLOB PRIMARY KEY)')
            database.executemany(f'INSERT INTO "{table}" VALUES (?)', [(n,) for n in names])
        database.execute("CREATE TABLE grace (current INT, recovery INT)")
        database.execute("INSERT INTO grace VALUES (2, 1)")
    return database


def known(database: sqlite3.Connection) -> int:
    (count,) = database.execute('SELECT count(*) FROM "rec-0000000000000001"').fetchone()
    (later,) = database.execute('SELECT count(*) FROM "rec-0000000000000002"').fetchone()
    assert database.execute("SELECT * FROM grace").fetchall() == [(2, 1)]
    return int(count) + int(later)


def started_anew(host: Host, fsid: str) -> None:
    host.threads(0)
    host.nfs.export(fsid)
    host.units.on_start = lambda: host.threads(8)
    host.nfs.start(soon(5))


def test_with_a_new_tree_the_server_starts_without_old_clients(host: Host) -> None:
    database = clients_known(host, "a", "b")
    started_anew(host, FSID)
    assert known(database) == 4, "nothing is known of the tree before: clients may have files open"
    started_anew(host, OTHER_FSID)
    assert known(database) == 0


def test_with_the_same_tree_the_server_keeps_its_clients(host: Host) -> None:
    started_anew(host, FSID)
    database = clients_known(host, "a", "b")
    started_anew(host, FSID)
    assert known(database) == 4
    started_anew(host, OTHER_FSID)
    assert known(database) == 0


def test_a_server_that_runs_for_another_volume_keeps_its_clients(host: Host) -> None:
    database = clients_known(host, "a")
    host.nfs.export(FSID)
    host.threads(8)
    host.nfs.start(soon(5))
    assert known(database) == 2


@pytest.mark.parametrize(("name", "kept"), [("exports", 2), ("exports.d/other.exports", 2)])
def test_clients_of_another_export_are_kept(
    host: Host, caplog: pytest.LogCaptureFixture, name: str, kept: int
) -> None:
    database = clients_known(host, "a")
    path = host.directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("# a comment\n\n/else c9(rw)\n")
    started_anew(host, FSID)
    started_anew(host, OTHER_FSID)
    assert known(database) == kept
    assert "their records stay" in caplog.text
    path.write_text("# /else c9(rw)\n\\\n# as exportfs reads it, a blank was before this\n")
    started_anew(host, FSID)
    assert known(database) == 0


def test_a_database_that_is_none_keeps_no_server_from_starting(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    (host.directory / "main.sqlite").write_text("not a database" * 100)
    caplog.set_level(logging.INFO)
    started_anew(host, FSID)
    started_anew(host, OTHER_FSID)
    assert "can't be dropped (file is not a database)" in caplog.text
    assert host.nfs.is_running()


def test_without_a_database_there_is_nothing_to_drop(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    started_anew(host, FSID)
    assert caplog.text == ""
    assert not (host.directory / "main.sqlite").exists()


def test_times_and_versions_are_set_before_the_start(host: Host, config: Config) -> None:
    conf = host.directory / "nfs.conf.d/standfast.conf"
    host.units.on_start = lambda: host.threads(8 if conf.exists() else 0)
    host.nfs.start(soon(5))
    lines = conf.read_text().splitlines()
    assert lines[1:] == [
        "[nfsd]",
        "grace-time=10",
        "lease-time=10",
        "vers3=n",
        "vers4.0=n",
        "rdma=n",
    ]
    longer = replace(config, nfs=replace(config.nfs, lease_time=12.2))
    assert "grace-time=13\nlease-time=13\n" in settings(longer)


def test_settings_that_can_not_be_written_keep_no_server_from_starting(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    (host.directory / "nfs.conf.d").write_text("a file")
    host.units.on_start = lambda: host.threads(8)
    host.nfs.start(soon(5))
    assert "nfsd keeps its own grace and lease times" in caplog.text


def test_exported_is_what_the_table_and_the_file_say(host: Host, config: Config) -> None:
    host.nfs.export(FSID)
    assert not host.nfs.is_exported(FSID)
    line = f"{escaped(config.paths.live)}\tc9(rw,fsid={FSID})\n"
    (host.directory / "etab").write_text(line)
    assert not host.nfs.is_exported(FSID), "a power cut left the table: nobody exports by it"
    host.threads(8)
    assert host.nfs.is_exported(FSID)
    assert not host.nfs.is_exported(OTHER_FSID)
    host.export_file.unlink()
    assert not host.nfs.is_exported(FSID)


def test_a_table_that_a_power_cut_left_would_export_without_the_file(host: Host) -> None:
    """A server that is started by hand goes by it."""
    assert not host.nfs.would_export(), "neither a file nor a table"
    (host.directory / "etab").write_text("/else\tc9(rw)\n")
    assert not host.nfs.would_export(), "another's"
    (host.directory / "etab").write_text(f"{escaped(host.live)}\tc9(rw,fsid={FSID})\n")
    assert host.nfs.would_export()


def test_a_table_that_can_not_be_read_may_export_without_the_file(host: Host) -> None:
    (host.directory / "etab").mkdir()
    assert host.nfs.would_export()


def test_active_without_threads_is_not_started(host: Host) -> None:
    with pytest.raises(StandfastError, match="nfsd has no threads"):
        host.nfs.start(soon(5))


def fail_to_start() -> None:
    raise CommandFailed("start: systemctl ended with status 1: Job canceled.", returncode=1)


def test_a_refusal_of_the_guard_comes_back_in_its_own_words(host: Host) -> None:
    host.units.on_start = fail_to_start
    lines = REFUSAL.splitlines()
    host.units.said = [
        JournalLine("systemd", "Starting NFS server and services..."),
        *(JournalLine("nfs-server-guard", line) for line in lines),
        JournalLine("systemd", "Failed to start NFS server and services."),
    ]
    with pytest.raises(Refused) as caught:
        host.nfs.start(soon(5))
    assert str(caught.value) == REFUSAL
    assert caught.value.reason is Reason.OTHER_SERVER_ACTIVE


def test_another_failure_is_not_taken_for_a_refusal(host: Host) -> None:
    host.units.on_start = fail_to_start
    host.units.said = [JournalLine("rpc.nfsd", "writing fd to kernel failed: errno 98")]
    with pytest.raises(CommandFailed, match=r"see `journalctl -u nfs-server\.service`"):
        host.nfs.start(soon(5))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("refused [lease-too-short]: 0.2 s left", Reason.LEASE_TOO_SHORT),
        ("refused (consul-timeout): no answer", Reason.CONSUL_TIMEOUT),
        ("something (else) [happened]", Reason.UNEXPECTED),
    ],
)
def test_the_reason_is_read_from_the_refusal(text: str, reason: Reason) -> None:
    assert reason_in(text) is reason


def test_stopping_ends_a_server_started_by_hand_too(host: Host) -> None:
    host.threads(1)
    host.nfs.stop(soon(5))
    assert host.units.calls == ["stop nfs-server.service"]
    assert host.calls == ["ss -K -t -n -H state connected sport = :2049", "rpc.nfsd 0"]
    assert not host.nfs.is_running()


def test_connections_that_cannot_be_closed_do_not_keep_the_server_running(host: Host) -> None:
    host.threads(1)
    host.program("ss", "echo no such thing >&2; exit 1")
    host.nfs.stop(soon(5))
    assert not host.nfs.is_running()


def test_threads_that_stay_are_an_error(host: Host) -> None:
    host.threads(3)
    host.program("rpc.nfsd", "")
    with pytest.raises(StandfastError, match="3 nfsd threads are left"):
        host.nfs.stop(Deadline.after(0.3))


def test_without_the_nfsd_file_system_nothing_runs_and_garbage_is_an_error(host: Host) -> None:
    (host.directory / "nfsd/threads").write_text("?")
    with pytest.raises(StandfastError, match="can't be read"):
        host.nfs.is_running()
    (host.directory / "nfsd/threads").unlink()
    assert not host.nfs.is_running()


@pytest.mark.parametrize(
    ("threads", "etab", "why"),
    [
        (0, "{live}\tc9(rw,fsid={fsid})", "no threads"),
        (8, "/elsewhere\tc9(rw,fsid={fsid})", "is not exported"),
        (8, "{live}\tc9(rw,fsid=6b1f1d5e-0000-4a8c-9c57-0c7a3b9e2f10)", "another fsid"),
        (8, "{live}\tc9(rw,fsid={fsid})", "can't be reached"),
    ],
)
def test_serving_takes_threads_export_and_an_answer(
    host: Host, config: Config, monkeypatch: pytest.MonkeyPatch, threads: int, etab: str, why: str
) -> None:
    answers(monkeypatch, StandfastError("can't be reached"))
    host.nfs.export(FSID)
    host.threads(threads)
    text = etab.format(live=escaped(config.paths.live), fsid=FSID)
    (host.directory / "etab").write_text(f"{text}\n")
    assert why in (host.nfs.check(soon(5)) or "it serves")


def test_a_serving_server_is_said_to_serve(
    host: Host, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch)
    host.nfs.export(FSID)
    host.threads(8)
    etab = f"{escaped(config.paths.live)}\tc9(rw,fsid={FSID},anonuid=65534)\n"
    (host.directory / "etab").write_text(etab)
    assert host.nfs.check(soon(5)) is None


SILENT = MountdSilent("rpc.mountd doesn't answer the kernel")
MOUNTD, CLD = "nfs-mountd.service", "nfsdcld.service"


def serving(host: Host) -> None:
    """By all that the kernel says."""
    host.threads(8)
    host.nfs.export(FSID)


def test_a_server_whose_mountd_is_silent_does_not_serve_by_its_name(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, SILENT)
    serving(host)
    assert host.nfs.check(soon(5)) == "rpc.mountd doesn't answer the kernel"


def test_what_a_client_gets_counts_and_what_is_in_its_way_is_named(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, client="a client gets another tree")
    serving(host)
    assert host.nfs.check(soon(5)) == "a client gets another tree"
    (host.directory / "exports").write_text(f"{escaped(host.live.parent)} c9(rw)\n")
    said = host.nfs.check(soon(5)) or ""
    assert said.startswith(f"a client gets another tree: {host.directory}/exports:1 exports ")
    answers(monkeypatch)
    assert host.nfs.check(soon(5)) is None, "in nobody's way who asks from here"


@pytest.mark.parametrize(("more", "fresh"), [("", True), ("/else\t*.example.net(rw)\n", False)])
def test_where_clients_are_known_by_dns_alone_mountd_is_not_asked_for_new_addresses(
    host: Host, monkeypatch: pytest.MonkeyPatch, more: str, fresh: bool
) -> None:
    asked: list[bool] = []
    answers(monkeypatch)
    monkeypatch.setattr(
        nfs_module, "ask_mountd", lambda _port, _deadline, *, fresh: asked.append(fresh)
    )
    serving(host)
    with (host.directory / "etab").open("a") as table:
        table.write(more)
    assert host.nfs.check(soon(5)) is None
    assert asked == [fresh]


def test_a_mountd_that_ended_is_started_again_once_the_kernel_misses_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exportd in its place answers the kernel as well."""
    host.units.ended = {MOUNTD}
    serving(host)
    answers(monkeypatch)
    assert host.nfs.check(soon(5)) is None
    assert host.nfs.mend(soon(5)) is None and host.units.calls == []
    answers(monkeypatch, SILENT)
    assert host.nfs.check(soon(5))
    assert host.nfs.mend(soon(5)) == f"{MOUNTD} had ended: started again"
    assert host.units.calls == [f"start {MOUNTD}"]
    assert host.nfs.mend(soon(5)) is None, "it runs"


def test_an_nfsdcld_that_ended_is_started_again(host: Host) -> None:
    serving(host)
    host.units.ended = {CLD}
    assert host.nfs.mend(soon(5)) == f"{CLD} had ended: started again"
    assert host.units.calls == [f"start {CLD}"]


def test_without_a_server_no_daemon_is_started(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """nfs-mountd binds itself to the server: systemd would start that."""
    answers(monkeypatch, SILENT)
    serving(host)
    assert host.nfs.check(soon(5))
    host.units.ended = {MOUNTD, CLD}
    host.threads(0)
    assert host.nfs.mend(soon(5)) is None
    assert host.units.calls == []


def test_a_mountd_that_hangs_is_killed_in_time_and_started_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = stop_the_clock(monkeypatch)
    serving(host)
    for mountd, after_s in ((SILENT, 0.0), (None, 9.0), (SILENT, 9.0), (SILENT, 9.0)):
        clock.sleep(after_s)
        answers(monkeypatch, mountd)
        host.nfs.check(soon(5))
        assert host.nfs.mend(soon(5)) is None, "it may be slow"
    clock.sleep(2.0)
    assert host.nfs.check(soon(5))
    assert host.nfs.mend(soon(5)) == f"{MOUNTD} had ended: started again"
    assert host.units.calls == [f"kill {MOUNTD}", f"start {MOUNTD}"]
    for _ in range(2):
        clock.sleep(4.0)
        host.nfs.check(soon(5))
        assert host.nfs.mend(soon(5)) is None, "one that has just begun gets its time, too"


def test_a_daemon_that_does_not_start_is_an_error(host: Host) -> None:
    serving(host)
    host.units.ended = {CLD}
    host.units.on_start = fail_to_start
    with pytest.raises(CommandFailed):
        host.nfs.mend(soon(5))


def test_the_ids_of_ganesha_follow_from_the_fsid(config: Config) -> None:
    first = export_block(config, UUID(FSID))
    assert first == export_block(config, UUID(FSID))
    other = export_block(config, UUID("00000000-6d3e-4a8c-9c57-0c7a3b9e2f10"))
    for name in ("Export_Id", "Filesystem_Id"):
        one, two = (
            next(line for line in block.splitlines() if name in line) for block in (first, other)
        )
        assert one != two
    assert f'Pseudo = "{config.paths.live}"' in first
    assert "Clients = 192.168.1.0/24, c9;" in first


def test_a_ganesha_in_another_network_is_not_ours(config: Config, tmp_path: Path) -> None:
    proc = tmp_path / "proc"

    def process(pid: str, stat: str, network: str) -> None:
        (proc / pid / "ns").mkdir(parents=True)
        (proc / pid / "stat").write_text(stat)
        (proc / pid / "ns/net").symlink_to(network)

    process("self", "1 (python3) R 1", "net:[1]")
    process("7", "7 (ganesha.nfsd) S 1", "net:[1]")
    process("8", "8 (ganesha.nfsd) Z 1", "net:[1]")
    process("9", "9 (ganesha.nfsd) S 1", "net:[2]")
    process("10", "10 (nfs (x) y) S 1", "net:[1]")
    server = GaneshaNfs(replace(config), FakeUnits(), proc=proc)
    assert server.pids() == [7]


def test_a_ganesha_that_can_not_be_told_is_no_ganesha_that_is_gone(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without CAP_SYS_PTRACE: the end of a lease would take it for stopped."""
    process = tmp_path / "proc/7"
    process.mkdir(parents=True)
    (process / "stat").write_text("7 (ganesha.nfsd) S 1")

    def refused(_path: Path) -> Path:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "readlink", refused)
    server = GaneshaNfs(replace(config), FakeUnits(), proc=tmp_path / "proc")
    with pytest.raises(StandfastError, match=r"pid 7\) is in this network can't be told"):
        server.is_running()


def test_the_lines_of_the_journal_come_with_their_program() -> None:
    listing = "\n".join(
        [
            json.dumps({"MESSAGE": "refused", "SYSLOG_IDENTIFIER": "nfs-server-guard"}),
            "not json",
            json.dumps({"MESSAGE": [1, 2]}),
            json.dumps({"MESSAGE": "plain"}),
        ]
    )
    assert parse_journal(listing) == [
        JournalLine("nfs-server-guard", "refused"),
        JournalLine("", "plain"),
    ]


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    def install(script: str) -> Path:
        told = f'echo "$*" >> {tmp_path}/systemctl-calls'
        tool = write_script(tmp_path / "bin/systemctl", f"{told}\n{script}")
        monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
        return tmp_path / "systemctl-calls"

    return install


def test_a_start_leaves_the_start_limit_of_a_crash_loop_alone(
    systemctl: Callable[[str], Path],
) -> None:
    calls = systemctl("true")
    SystemdUnits().start("a.service", soon(5))
    assert calls.read_text().splitlines() == ["start -- a.service"]


def test_nothing_to_forget_is_no_error(systemctl: Callable[[str], Path]) -> None:
    calls = systemctl("exit 1")
    SystemdUnits().reset_failed("a.service", soon(5))
    assert calls.read_text().splitlines() == ["reset-failed -- a.service"]


@pytest.mark.parametrize(
    ("state", "active"),
    [("active", True), ("reloading", True), ("activating", False), ("failed", False)],
)
def test_active_is_what_the_manager_says(
    systemctl: Callable[[str], Path], state: str, active: bool
) -> None:
    systemctl(f"echo {state}")
    assert SystemdUnits().is_active("a.service") is active


@pytest.mark.parametrize("script", ["echo 'Failed to connect to bus' >&2; exit 1", "exit 0"])
def test_a_manager_that_does_not_say_is_not_inactive(
    systemctl: Callable[[str], Path], script: str
) -> None:
    systemctl(script)
    with pytest.raises(StandfastError):
        SystemdUnits().is_active("a.service")


@pytest.mark.parametrize(
    ("load", "state", "ended"),
    [
        ("loaded", "failed", True),
        ("loaded", "inactive", True),
        ("loaded", "active", False),
        ("loaded", "activating", False),
        ("masked", "inactive", False),
        ("not-found", "inactive", False),
    ],
)
def test_what_could_run_and_does_not_has_ended(
    systemctl: Callable[[str], Path], load: str, state: str, ended: bool
) -> None:
    systemctl(f"echo LoadState={load}; echo ActiveState={state}")
    assert SystemdUnits().has_ended("a.service") is ended


def test_a_unit_is_killed_without_being_stopped(systemctl: Callable[[str], Path]) -> None:
    calls = systemctl("true")
    SystemdUnits().kill("a.service", soon(5))
    assert calls.read_text().splitlines() == ["kill --signal=KILL -- a.service"]


def test_a_drop_in_is_written_once_and_taken_away(
    systemctl: Callable[[str], Path], tmp_path: Path
) -> None:
    calls = systemctl("")
    units = SystemdUnits(tmp_path / "units")
    for _ in range(2):
        units.write_drop_in("a.mount", "x", "[Mount]\n", soon(5))
    assert (tmp_path / "units/a.mount.d/x.conf").read_text() == "[Mount]\n"
    for _ in range(2):
        units.remove_drop_in("a.mount", "x", soon(5))
    assert not (tmp_path / "units/a.mount.d").exists()
    assert calls.read_text().splitlines() == ["daemon-reload"] * 2


def test_a_drop_in_that_systemd_has_not_read_is_written_or_removed_again(
    systemctl: Callable[[str], Path], tmp_path: Path
) -> None:
    units = SystemdUnits(tmp_path / "units")
    path = tmp_path / "units/a.mount.d/x.conf"
    systemctl("exit 1")
    with pytest.raises(StandfastError):
        units.write_drop_in("a.mount", "x", "[Mount]\n", soon(5))
    assert not path.exists()
    systemctl("")
    units.write_drop_in("a.mount", "x", "[Mount]\n", soon(5))
    systemctl("exit 1")
    with pytest.raises(StandfastError):
        units.remove_drop_in("a.mount", "x", soon(5))
    assert path.exists()
    systemctl("")
    units.remove_drop_in("a.mount", "x", soon(5))
    assert not path.exists()


def test_threads_are_seen_where_the_files_of_nfsd_are_not_mounted(host: Host) -> None:
    """Else a server that runs counts as one that was stopped."""
    host.threads(8)
    (host.directory / "nfsd/threads").unlink()
    assert not host.nfs.is_running()
    for pid, name, parent in (
        (70, "nfsd", 2),
        (71, "nfsd", 2),
        (72, "nfsd", 1),
        (73, "nfsd) x", 2),
    ):
        (host.directory / f"proc/{pid}").mkdir(parents=True)
        (host.directory / f"proc/{pid}/stat").write_text(f"{pid} ({name}) S {parent} 0 0\n")
    assert host.nfs.threads() == 2
