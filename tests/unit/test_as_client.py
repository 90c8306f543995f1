"""The check asks as a client does; the server here is a fake that speaks XDR, the real ones are in
tests/contract/test_ganesha.py and tests/labs/kernels/test_daemons.py."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.config.model import Config, Nfs, Node
from standfast.errors import StandfastError
from standfast.nfs import as_client
from standfast.nfs.as_client import (
    LOOK_UP_EVERY_S,
    LooksUp,
    MountdSilent,
    admits,
    ask_mountd,
    asks_for_names,
    fresh_address,
    look_up,
    own_source,
)
from standfast.nfs.compound import MOST_NAMES
from standfast.system.clock import Deadline
from tests.fakes.clock import stop_the_clock
from tests.fakes.nfs_server import FSID, FakeNfsServer, serve
from tests.support.configs import config_of
from tests.support.waiting import soon

OTHER = "11111111-6d3e-4a8c-9c57-0c7a3b9e2f10"
LOOK = ["exchange_id", "create_session", "sequence", "putrootfh", "lookup", "lookup", "getattr"]
TAKEN_BACK = ["destroy_session", "destroy_clientid"]


@pytest.fixture
def server() -> Iterator[FakeNfsServer]:
    with serve(FakeNfsServer({"/persist/services": FSID})) as made:
        yield made


def config_for(server: FakeNfsServer, *clients: str, address: str = "127.0.0.1") -> Config:
    config = config_of(
        "n1",
        nodes={"n1": Node(address=address)},
        nfs=Nfs(port=server.port, clients=clients or ("127.0.0.0/8",)),
    )
    return replace(config, paths=replace(config.paths, live=Path("/persist/services")))


# -- the exported path -------------------------------------------------------------------


def test_a_client_that_gets_this_epochs_tree_is_served_and_leaves_nothing_behind(
    server: FakeNfsServer,
) -> None:
    assert look_up(config_for(server), FSID, soon(10)) is None
    assert server.calls == [*LOOK, *TAKEN_BACK]
    assert (server.clients, server.sessions) == (set(), {})


def test_another_tree_at_the_path_is_none_of_this_epochs(server: FakeNfsServer) -> None:
    said = look_up(config_for(server), OTHER, soon(10)) or ""
    assert f"another tree at /persist/services than this epoch's (fsid {FSID})" in said


@pytest.mark.parametrize(
    ("operation", "status", "why"),
    [
        ("exchange_id", 10021, "a client's first request failed with NFS4ERR_MINOR_VERS_MISMATCH"),
        ("create_session", 10018, "a client's session failed with NFS4ERR_RESOURCE"),
        ("sequence", 10052, "a session's first request failed with error 10052"),
        ("putrootfh", 10006, "the root of all exports failed with NFS4ERR_SERVERFAULT"),
        ("lookup", 13, "a client's look for 'persist' failed with NFS4ERR_ACCESS"),
        ("getattr", 70, "a client's look at the export failed with NFS4ERR_STALE"),
    ],
)
def test_each_operation_that_fails_is_said_by_name_and_nothing_is_left_behind(
    server: FakeNfsServer, operation: str, status: int, why: str
) -> None:
    server.errors[operation] = status
    said = look_up(config_for(server), FSID, soon(10)) or ""
    assert why in said and f"127.0.0.1:{server.port}" in said
    if operation != "exchange_id":
        assert (server.clients, server.sessions) == (set(), {})


def test_a_path_that_clients_do_not_get_to_is_said(server: FakeNfsServer) -> None:
    server.tree = {"/persist": OTHER}
    said = look_up(config_for(server), FSID, soon(10)) or ""
    assert "a client's look for 'services' failed with NFS4ERR_NOENT" in said


def test_an_export_that_wants_another_security_has_answered(server: FakeNfsServer) -> None:
    server.errors["getattr"] = 10016
    assert look_up(config_for(server), FSID, soon(10)) is None


@pytest.mark.parametrize("operation", LOOK)
def test_a_server_that_hangs_at_any_operation_is_given_up_at_the_deadline(
    server: FakeNfsServer, operation: str
) -> None:
    server.hangs_at = operation
    said = look_up(config_for(server), FSID, Deadline.after(0.5)) or ""
    assert "does not answer in time" in said


def test_who_may_not_mount_does_not_ask(server: FakeNfsServer) -> None:
    """And a node whose address isn't its own, and a path of more names than a request takes."""
    assert look_up(config_for(server, "10.0.0.0/8"), OTHER, soon(10)) is None
    away = config_for(server, "192.0.2.0/24", address="192.0.2.7")
    assert look_up(away, OTHER, soon(10)) is None
    config = config_for(server)
    deep = replace(config.paths, live=Path("/" + "/".join("x" * (MOST_NAMES + 1))))
    assert look_up(replace(config, paths=deep), OTHER, soon(10)) is None
    assert server.calls == []


@pytest.mark.parametrize(
    ("clients", "address", "may"),
    [
        (("192.168.1.0/24",), "192.168.1.2", True),
        (("192.168.1.0/255.255.255.0",), "192.168.1.2", True),
        (("192.168.1.2",), "192.168.1.2", True),
        (("fd00::/64",), "fd00::2", True),
        (("*",), "192.168.1.2", True),
        (("c9", "10.0.0.0/8"), "192.168.1.2", False),
        (("*.example.net", "@hosts"), "192.168.1.2", False),
        (("192.168.1.0/24",), "n1.example.net", False),
    ],
)
def test_who_may_mount_is_known_by_address(
    clients: tuple[str, ...], address: str, may: bool
) -> None:
    assert admits(clients, address) is may


def test_a_node_asks_from_its_own_address_where_it_may(server: FakeNfsServer) -> None:
    assert own_source(config_for(server, "10.0.0.0/8", address="10.1.2.3")) == "10.1.2.3"
    assert own_source(config_for(server, "127.0.0.0/8", address="10.1.2.3")) == "127.0.0.1"
    assert own_source(config_for(server, "n1", address="n1")) is None


def test_a_way_that_is_well_is_looked_at_now_and_then_and_one_that_is_not_each_time(
    server: FakeNfsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = stop_the_clock(monkeypatch)
    looks = LooksUp(config_for(server))

    def asked(fsid: str, after_s: float) -> tuple[bool, bool]:
        clock.now += after_s
        server.calls.clear()
        return looks.problem(fsid, Deadline.after(10)) is None, bool(server.calls)

    assert asked(FSID, 0) == (True, True)
    assert asked(FSID, LOOK_UP_EVERY_S - 1) == (True, False)
    assert asked(OTHER, 0) == (False, True), "another epoch"
    assert asked(OTHER, 0) == (False, True)
    assert asked(FSID, 0) == (True, True)
    assert asked(FSID, LOOK_UP_EVERY_S) == (True, True)


# -- mountd ------------------------------------------------------------------------------


@pytest.mark.parametrize(("mountd", "calls"), [("answers", "empty"), ("denies", "denied")])
def test_whatever_mountd_answers_it_lives(server: FakeNfsServer, mountd: str, calls: str) -> None:
    server.mountd = mountd
    ask_mountd(server.port, soon(10), channel=Path("/nowhere"))
    assert server.calls == ["null", calls]


def test_a_mountd_that_says_nothing_is_named(server: FakeNfsServer) -> None:
    server.mountd = "hangs"
    with pytest.raises(MountdSilent, match=r"rpc\.mountd doesn't answer.*nfs-mountd\.service"):
        ask_mountd(server.port, Deadline.after(0.5), channel=Path("/nowhere"))
    assert server.calls == ["null"]


def test_a_server_that_is_not_there_is_not_mountds_fault(server: FakeNfsServer) -> None:
    with pytest.raises(StandfastError, match="refused") as caught:
        ask_mountd(1, soon(10), channel=Path("/nowhere"))
    assert not isinstance(caught.value, MountdSilent)


def test_each_ask_comes_from_an_address_of_loopback_that_was_not_used(
    server: FakeNfsServer,
) -> None:
    """Where clients are known by DNS alone it comes from the one that is known."""
    for _ in range(8):
        ask_mountd(server.port, soon(10), channel=Path("/nowhere"))
    fresh = {address for address, _ in server.peers}
    assert len(fresh) == 8
    assert all(address.startswith("127.") for address in fresh)
    assert not any(address.startswith("127.0.") for address in fresh)
    ask_mountd(server.port, soon(10), fresh=False, channel=Path("/nowhere"))
    assert server.peers[-1][0] == "127.0.0.1"
    if os.geteuid() == 0:
        assert all(port < 1024 for _, port in server.peers)


def test_an_address_is_fresh_in_all_but_its_first_byte() -> None:
    made = {fresh_address() for _ in range(200)}
    assert len(made) > 190
    for address in made:
        first, second, _, last = map(int, address.split("."))
        assert first == 127 and 1 <= second <= 254 and 1 <= last <= 254


def test_the_channel_has_a_writer_while_mountd_is_asked(
    server: FakeNfsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one the kernel answers for it 30 s after its death."""
    channel = tmp_path / "channel"
    channel.write_text("")
    held: list[list[str]] = []

    def holders() -> list[str]:
        found = []
        for fd in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # another thread's, closed by now
                if fd.readlink() == channel:
                    found.append(fd.name)
        return found

    def fresh() -> str:
        return "127.1.2.3"

    answer = server.answer

    def watched(call: bytes) -> bytes | None:
        held.append(holders())
        return answer(call)

    monkeypatch.setattr(as_client, "fresh_address", fresh)
    monkeypatch.setattr(server, "answer", watched)
    ask_mountd(server.port, soon(10), channel=channel)
    assert [len(fds) for fds in held] == [1, 1]
    assert holders() == [] and channel.read_text() == ""


def test_a_channel_that_can_not_be_opened_proves_nothing(
    server: FakeNfsServer, tmp_path: Path
) -> None:
    with pytest.raises(StandfastError, match="can't be opened: Is a directory"):
        ask_mountd(server.port, soon(10), channel=tmp_path)


@pytest.mark.parametrize(
    ("table", "asks"),
    [
        ("/a\t192.168.1.0/24(rw,fsid=x)\n/b\t*(rw)\tc9(rw)\n", False),
        ("/a\t*.example.net(rw)\n", True),
        ("/a\t10.0.0.1(rw)\n/b\tc9(rw)\t@hosts(ro)\n", True),
        ("/a\tc?(rw)\n", True),
        ("/a\tc9(rw,x=[*])\n", False),
        ("", False),
    ],
)
def test_clients_that_are_known_by_dns_alone_are_seen(table: str, asks: bool) -> None:
    assert asks_for_names(table) is asks
