"""Who serves, told by Consul alone: a heartbeat that is merely found may be of any age."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest
from msgspec import UNSET, structs

from standfast.agent import document, watcher
from standfast.agent.document import LOOKS_WITHIN_S, Heard, fetch, without_agent
from standfast.cli.status import _watched
from standfast.config.model import FAST_PROFILE, Config
from standfast.consul.gateway import ConsulGateway, Entry
from standfast.consul.records import Holder, Leader, LeaderState, dump_epoch
from standfast.doctor.service_checks import examine
from standfast.errors import ConsulError, NotRunning
from standfast.exporter import status_cache
from standfast.exporter.status_cache import StatusCache, remembering
from standfast.role.observation import LastHeartbeat
from standfast.status.document import Status
from standfast.status.overview import Keys as PageKeys
from standfast.status.text import render
from tests.fakes.consul import MemoryConsul
from tests.support.configs import config_in
from tests.support.terminal import Desk, a_desk, write_node

SERVING, DRAINING = LeaderState.SERVING, LeaderState.DRAINING


def beat(seq: int, state: LeaderState = SERVING, epoch: int = 4) -> Leader:
    return Leader(epoch, Holder("n1", "boot-1"), seq, state, ("n2",))


class Keys(MemoryConsul):
    """Its clock stands still but for the waits, each of which lasts as long as is asked for."""

    def __init__(self, config: Config) -> None:
        super().__init__("n2")
        self.config, self.now, self.waits = config, 1000.0, 0
        self.meanwhile: Callable[[], object] = lambda: None

    def leads(self, leader: Leader) -> None:
        self.put(self.config.key("epoch"), dump_epoch(leader.epoch))
        self.put(self.config.key("leader"), leader.dump())

    def wait(self, key: str, index: int, *, wait_s: float) -> tuple[int, Entry | None]:
        if index and wait_s:
            self.waits += 1
            before = super().wait(key, 0, wait_s=0)[0]
            self.meanwhile()
            changed = super().wait(key, 0, wait_s=0)[0] != before
            self.now += 0.5 if changed else wait_s
        return super().wait(key, 0, wait_s=0)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_in(tmp_path)


@pytest.fixture
def keys(config: Config, monkeypatch: pytest.MonkeyPatch) -> Keys:
    """Its heartbeat is an hour old: nobody took over."""
    made = Keys(config)
    made.leads(beat(7))
    monkeypatch.setattr(ConsulGateway, "from_config", lambda *_, **__: made)
    for module in (document, watcher):
        monkeypatch.setattr(module, "monotonic", lambda: made.now)
    return made


def test_who_listens_hears_that_a_holder_is_dead(config: Config, keys: Keys) -> None:
    told = without_agent(config, listens=True)
    assert (told.serving, told.agent, keys.waits) == (None, False, 1)
    length_s = config.lease.length
    assert told.consul is not None and told.consul.last_heartbeat_seen_s is not None
    assert length_s < told.consul.last_heartbeat_seen_s < length_s + 0.5
    first = render(told).splitlines()[0]
    assert "NOBODY SERVES: n1 holds epoch 4 (serving), its last heartbeat was seen 8 s ago" in first


def test_who_listens_hears_a_holder_that_lives(config: Config, keys: Keys) -> None:
    keys.meanwhile = lambda: keys.leads(beat(8))
    told = without_agent(config, listens=True)
    assert (told.serving, keys.waits, keys.now) == ("n1", 1, 1000.5)
    assert "n1 is primary, epoch 4" in render(told)


def test_another_value_of_the_same_heartbeat_is_no_heartbeat(config: Config, keys: Keys) -> None:
    """Somebody mends the key by hand: the wait for its change ends, and the listening doesn't."""
    written = cycle([("n2", "n3"), ("n2",)])
    keys.meanwhile = lambda: keys.leads(structs.replace(beat(7), candidates=next(written)))
    told = without_agent(config, listens=True)
    assert told.serving is None and 1 < keys.waits < 40


def test_who_listens_hears_the_first_heartbeats_of_a_successor(config: Config, keys: Keys) -> None:
    coming = [beat(1, epoch=5), beat(2, epoch=5)]
    keys.meanwhile = lambda: keys.leads(coming.pop(0))
    told = without_agent(config, listens=True)
    assert (told.serving, told.consul and told.consul.epoch) == ("n1", 5)


@pytest.mark.parametrize("state", [LeaderState.STARTING, DRAINING])
def test_a_holder_that_died_while_its_role_changed_is_told_with_its_silence(
    config: Config, keys: Keys, state: LeaderState
) -> None:
    keys.leads(beat(7, state))
    told = without_agent(config, listens=True)
    assert told.serving is None
    assert "its last heartbeat was seen 8 s ago" in render(told).splitlines()[0]


def test_nobody_is_listened_for_where_the_role_was_given_up(config: Config, keys: Keys) -> None:
    keys.leads(beat(7, LeaderState.CLEAN))
    assert without_agent(config, listens=True).serving is None
    keys.delete(config.key("leader"))
    assert without_agent(config, listens=True).serving is None
    assert keys.waits == 0


def test_a_consul_that_goes_while_it_is_listened_to_is_told_as_ever(
    config: Config, keys: Keys
) -> None:
    def goes() -> None:
        raise ConsulError("no answer")

    keys.meanwhile = goes
    told = without_agent(config, listens=True)
    assert told.consul is None and told.agent is False
    assert "UNKNOWN WHO SERVES: no answer" in render(told)


def test_who_may_not_wait_does_not_know_at_first(config: Config, keys: Keys) -> None:
    told = without_agent(config)
    assert (told.serving, keys.waits) == (UNSET, 0)
    assert "serving" not in told.as_json() and told.as_json()["last_heartbeat_seen_s"] is None
    first = render(told).splitlines()[0]
    assert "UNKNOWN WHO SERVES: n1 holds epoch 4" in first and "heartbeats" in first
    [serving, *_] = examine(told)
    assert not serving.ok and "not known: n1 holds epoch 4" in serving.evidence


def test_later_looks_know_what_earlier_ones_saw(config: Config, keys: Keys) -> None:
    heard: Heard = {}

    def after(seconds: float, seq: int | None = None) -> object:
        keys.now += seconds
        if seq is not None:
            keys.leads(beat(seq))
        return without_agent(config, heard).serving

    assert after(0) is UNSET
    assert after(2) is UNSET
    assert after(2, 8) == "n1"
    assert after(7) == "n1", "one is not missed before a lease is over"
    assert after(2) is None
    assert after(10, 9) == "n1"
    assert after(LOOKS_WITHIN_S + 1, 10) is UNSET, "it may have come long ago"
    assert after(1, 11) == "n1"
    assert after(3600) is None
    # A backup of Consul was restored.
    keys.state.delete_key(keys.state.next_index(), config.key("leader"))
    keys.leads(beat(3))
    heard[config.volume] = (
        LastHeartbeat((4, "n1", "boot-1", 11), 10**6, keys.now, witnessed=True),
        keys.now,
    )
    assert after(1) is UNSET


def test_watching_waits_once(config: Config, keys: Keys) -> None:
    heard: Heard = {}
    for _ in range(3):
        assert without_agent(config, heard, listens=True).serving is None
        keys.now += 1
    assert keys.waits == 1
    told = without_agent(config, heard, listens=True)
    assert "seen 11 s ago" in render(told)


def test_status_that_watches_keeps_what_it_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_node(tmp_path / "etc", tmp_path, "zippy", "")
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(path.parent))
    kept: list[Heard] = []

    def told(config: Config, heard: Heard, *, listens: bool) -> Status:
        assert listens
        kept.append(heard)
        return Status(volume=config.volume, node=config.node, role="unknown")

    monkeypatch.setattr(document, "without_agent", told)
    [alone] = _watched(None)
    path.with_name("other.toml").write_text(path.read_text())
    [one, other] = _watched(None)
    for watched in (alone, alone, one, one, other):
        watched.look()
        assert watched.error is None
    assert kept[0] is kept[1] and kept[2] is kept[3]
    assert len({id(heard) for heard in kept}) == 3


def no_agent(_: Config) -> Status:
    raise NotRunning("nobody listens at agent.sock")


def test_the_page_waits_for_no_heartbeat_and_knows_after_a_lease(
    config: Config, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "of_agent", no_agent)
    monkeypatch.setattr(status_cache, "read_keys", lambda _: PageKeys())
    looks = StatusCache([config])
    looks.sample()

    def page() -> tuple[str, str | None, str]:
        looks._until = float("-inf")
        [volume] = json.loads(looks.body())["volumes"]
        headline = volume["headline"]
        return headline["level"], volume["serving"], headline["text"]

    level, serving, text = page()
    assert (level, serving) == ("unknown", None)
    assert "It is not known who serves" in text and "n1 holds epoch 4" in text
    keys.now += 9
    level, serving, text = page()
    assert (level, serving) == ("alarm", None)
    assert "Nobody serves" in text and "seen 9 s ago" in text
    keys.leads(beat(8))
    assert page()[1] == "n1"
    assert keys.waits == 0


def test_the_page_keeps_what_it_heard_when_an_agent_that_hung_ends(
    config: Config, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "of_agent", no_agent)
    readers = remembering()
    assert readers.from_consul(config).serving is UNSET
    keys.now += 9
    assert readers.fetch(config).serving is None


def test_a_scrape_does_not_wait(
    config: Config, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "of_agent", no_agent)
    assert fetch(config).serving is UNSET
    assert keys.waits == 0


def fast(desk: Desk) -> None:
    """By the fast profile: a lease is over after 2 s."""
    timing = "".join(
        f"{name} = {getattr(FAST_PROFILE, name)}\n"
        for name in ("heartbeat", "request_timeout", "length", "fence", "wait")
    )
    source = desk.config.source
    source.write_text(source.read_text().replace("request_timeout = 1\n", timing))


@pytest.mark.parametrize(("lives", "code"), [(True, 0), (False, 1)])
def test_a_script_can_ask_a_node_without_an_agent_whether_anybody_serves(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lives: bool,
    code: int,
) -> None:
    over = threading.Event()

    def leads(desk: Desk, seq: int) -> None:
        desk.put("leader", Leader(4, Holder("c1", "boot-1"), seq, SERVING, ("zippy",)).dump())

    def beats(desk: Desk) -> None:
        seq = 9
        while not over.wait(0.2):
            seq += 1
            with suppress(ConsulError):
                leads(desk, seq)

    with a_desk(tmp_path, monkeypatch, capsys) as desk:
        fast(desk)
        desk.put("epoch", dump_epoch(4))
        leads(desk, 9)
        thread = threading.Thread(target=beats, args=(desk,), daemon=True)
        if lives:
            thread.start()
        try:
            for form in ((), ("--json",)):
                got, out, _ = desk.run("status", *form)
                assert got == code, out
        finally:
            over.set()
            if lives:
                thread.join(30)
        assert json.loads(out)["serving"] == ("c1" if lives else None)
