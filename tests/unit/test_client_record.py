"""What a client tells of its mount: new things once, old ones now and then, never in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.clients import record
from standfast.clients.record import RENEW_S, WRITTEN, report
from standfast.consul.records import ClientRecord
from standfast.errors import ForeignValue, StandfastError
from tests.fakes.client import FakeClient, fake_client

KEY = "standfast-clients/data-services/client-7"
N1, N2 = "192.168.1.2", "192.168.1.3"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock: its last value counts."""
    times = [1_795_000_000.0]
    monkeypatch.setattr(record, "utc_now", lambda: times[-1])
    return times


@pytest.fixture
def client(tmp_path: Path) -> FakeClient:
    made = fake_client(tmp_path)
    made.config.run_dir.mkdir(parents=True, exist_ok=True)
    made.serve(N1, 5, 1)
    return made


def tell(client: FakeClient) -> ClientRecord | None:
    """A run of the handler and its word; None: it kept silent."""
    client.told.clear()
    run = client.run()
    report(client.config, client, run.decide()[1])
    value = client.told.get(KEY)
    return None if value is None else ClientRecord.parse(value, "client-7")


def test_a_mount_is_told_once_and_again_when_it_moves(client: FakeClient, now: list[float]) -> None:
    first = tell(client)
    assert first == ClientRecord("client-7", "n1", 5, "mount-current", now[-1])
    now.append(now[-1] + 60)
    assert tell(client) is None
    client.serve(N2, 6, 2)
    assert tell(client) == ClientRecord("client-7", "n2", 6, "mount-current", now[-1])


def test_an_old_word_is_said_again_so_that_silence_tells(
    client: FakeClient, now: list[float]
) -> None:
    assert tell(client) is not None
    now.append(now[-1] + RENEW_S)
    again = tell(client)
    assert again is not None and again.at == now[-1]
    now.append(now[-1] - 3600)  # the clock was set back
    assert tell(client) is not None


def test_a_mount_whose_server_is_away_is_still_of_that_server(
    client: FakeClient, now: list[float]
) -> None:
    assert tell(client) is not None
    client.trees[N1] = None
    told = tell(client)
    assert told is not None
    assert (told.state, told.server, told.epoch) == ("server-away", "n1", 5)


def test_without_consul_nothing_is_said_and_nothing_is_noted(
    client: FakeClient, now: list[float]
) -> None:
    decision = client.run().decide()[1]
    client.consul_up = False
    report(client.config, client, decision)
    assert not client.told and not (client.config.run_dir / WRITTEN).exists()
    client.consul_up = True
    report(client.config, client, decision)
    assert KEY in client.told
    client.consul_up = False
    client.log.clear()
    now.append(now[-1] + RENEW_S)
    report(client.config, client, client.run().decide()[1])  # "can't be read" is not a state
    assert f"put:{KEY}" not in client.log


def test_a_write_that_fails_is_tried_by_the_next_run(client: FakeClient, now: list[float]) -> None:
    decision = client.run().decide()[1]
    client.fail = "put"
    report(client.config, client, decision)
    assert not client.told
    report(client.config, client, decision)
    assert KEY in client.told


def test_who_never_was_a_client_says_nothing(client: FakeClient, now: list[float]) -> None:
    client.tie_ = type(client.tie_)()
    assert tell(client) is None


@pytest.mark.parametrize("note", ["", "[]", '{"v":1}', '{"v":2,"node":"client-7"}'])
def test_a_note_that_can_not_be_understood_counts_as_none(
    client: FakeClient, now: list[float], note: str
) -> None:
    (client.config.run_dir / WRITTEN).write_text(note)
    assert tell(client) is not None


def test_the_record_of_a_client_is_parsed_with_suspicion() -> None:
    good = ClientRecord("c", "n1", 5, "mount-current", 7.0)
    assert ClientRecord.parse(good.dump()) == good
    assert ClientRecord.parse(ClientRecord("c", None, None, "no-server", 7.0).dump()).server is None
    for wrong in ({"node": ""}, {"server": 5}, {"epoch": "5"}, {"state": None}, {"at": True}):
        with pytest.raises(ForeignValue):
            ClientRecord.parse(json.dumps({**json.loads(good.dump()), **wrong}).encode())


def test_each_run_of_the_command_and_of_the_handler_tells_it(
    client: FakeClient, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from standfast.cli import clients

    config = replace(client.config, nfs=replace(client.config.nfs, server="kernel"))
    monkeypatch.setattr(clients, "parts_of", lambda config: client.parts)
    clients._by_event(config, "timer")
    assert KEY in client.told
    client.told.clear()
    now.append(now[-1] + RENEW_S)
    assert clients._by_hand(config, True, False) == 0
    assert KEY not in client.told  # a dry run
    assert clients._by_hand(config, False, False) == 0
    assert KEY in client.told


def test_a_run_that_found_nothing_out_tells_nothing(
    client: FakeClient, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from standfast.cli import clients

    config = replace(client.config, nfs=replace(client.config.nfs, server="kernel"))
    monkeypatch.setattr(clients, "parts_of", lambda config: client.parts)
    monkeypatch.setattr("standfast.clients.loop.Remount.run", broken)
    clients._by_event(config, "timer")
    assert KEY not in client.told


def broken(self: object) -> None:
    raise StandfastError("the mount table can't be read")
