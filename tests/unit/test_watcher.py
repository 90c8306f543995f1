"""What a node makes of Consul's answers: a Cluster, or Blind; never a guess."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.agent import watcher as watcher_module
from standfast.agent.watcher import Watcher, assemble
from standfast.config.model import Config
from standfast.consul.blindness import Blind
from standfast.consul.gateway import Entry
from standfast.consul.records import (
    HistoryEntry,
    Hold,
    Holder,
    Leader,
    LeaderState,
    Pause,
    StandbyRecord,
    dump_epoch,
)
from standfast.errors import (
    ConsulDenied,
    ConsulError,
    ConsulGarbled,
    ConsulLimited,
    ConsulNoQuorum,
    ConsulTimedOut,
    ConsulUnreachable,
    ForeignValue,
)
from standfast.nfs.rpc_null import null_call
from standfast.reasons import Reason
from standfast.role.observation import Beginning, Cluster, LastHeartbeat
from standfast.system.clock import Deadline, monotonic
from standfast.system.probe import answers, lets_in
from tests.fakes.consul import MemoryConsul
from tests.support.configs import config_in

PREFIX = "standfast/data-services/"


class Keys(MemoryConsul):
    """Consul in memory, counting what is read; nobody is waited for."""

    def __init__(self) -> None:
        super().__init__("n1", "n2", "n3")
        self.reads: list[str] = []

    def set(self, name: str, value: bytes) -> None:
        self.put(PREFIX + name, value)

    @property
    def entries(self) -> Mapping[str, Entry]:
        return {entry.key.removeprefix(PREFIX): entry for entry in self.get_many(PREFIX)}

    def read(
        self, keys: Sequence[str], *, folders: Sequence[str] = (), deadline: Deadline | None = None
    ) -> Mapping[str, Entry | None]:
        self.reads.append("details")
        return super().read(keys, folders=folders, deadline=deadline)

    def wait(self, key: str, index: int, *, wait_s: float) -> tuple[int, Entry | None]:
        self.reads.append(f"wait:{index}")
        return super().wait(key, 0, wait_s=wait_s)

    def node_health(self, node: str, *, deadline: Deadline | None = None) -> str:
        self.reads.append(f"health:{node}")
        return super().node_health(node, deadline=deadline)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watcher_module, "monotonic", clock)
    return clock


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = config_in(tmp_path)
    holder = structs.replace(made.nodes["n2"], probe_port=7301)
    return structs.replace(made, nodes={**made.nodes, "n2": holder})


@pytest.fixture
def keys() -> Keys:
    keys = Keys()
    keys.set("epoch", dump_epoch(4))
    beat(keys, 1)
    return keys


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whom the watcher probed; nobody answers."""
    asked: list[str] = []

    def nobody(address: str, port: int) -> bool:
        asked.append(f"{address}:{port}")
        return False

    monkeypatch.setattr(watcher_module, "answers", nobody)
    return asked


def beat(keys: Keys, seq: int, **changes: object) -> None:
    leader = Leader(4, Holder("n2", "boot-2"), seq, LeaderState.SERVING, ("n1", "n3"))
    keys.set("leader", structs.replace(leader, **changes).dump())


def index_of(keys: Keys) -> int:
    """Of the leader's key."""
    [entry] = [entry for entry in keys.entries.values() if entry.key == PREFIX + "leader"]
    return entry.modify_index


def cluster(view: Cluster | Blind) -> Cluster:
    assert isinstance(view, Cluster), view
    return view


def test_a_new_heartbeat_is_a_new_last_heartbeat(config: Config, keys: Keys, clock: Clock) -> None:
    watcher = Watcher(config, keys)
    first = LastHeartbeat((4, "n2", "boot-2", 1), index_of(keys), 1000.0)
    assert cluster(watcher.look(0)).last_heartbeat == first
    clock.now = 1002.0
    beat(keys, 2)
    assert cluster(watcher.look(0)).last_heartbeat.first_seen == 1002.0


def test_a_clean_is_witnessed_by_who_looks_all_the_time(
    config: Config, keys: Keys, clock: Clock, probed: list[str]
) -> None:
    watcher = Watcher(config, keys)
    watcher.look(0)
    clock.now += config.lease.wait / 2
    beat(keys, 2, state=LeaderState.CLEAN)
    view = cluster(watcher.look(0))
    assert view.last_heartbeat.witnessed and view.nobody_serves
    clock.now += config.lease.wait / 2 + 0.1
    view = cluster(watcher.look(0))
    assert not view.last_heartbeat.witnessed, "it may have changed and changed back"
    assert view.given_up and not view.nobody_serves


@pytest.mark.parametrize("looked_before", [True, False])
def test_a_clean_that_came_when_nobody_looked_is_not_witnessed(
    config: Config, keys: Keys, clock: Clock, probed: list[str], looked_before: bool
) -> None:
    watcher = Watcher(config, keys)
    if looked_before:
        watcher.look(0)
        clock.now += config.lease.wait / 2 + 0.1
    beat(keys, 2, state=LeaderState.CLEAN)
    view = cluster(watcher.look(0))
    assert view.given_up and not view.nobody_serves


def test_a_value_seen_again_keeps_the_time_of_its_first_sight(
    config: Config, keys: Keys, clock: Clock, probed: list[str]
) -> None:
    watcher = Watcher(config, keys)
    watcher.look(0)
    for clock.now in (1001.0, 1006.0, 1012.0):
        assert cluster(watcher.look(0)).last_heartbeat.first_seen == 1000.0


def test_a_last_heartbeat_survives_a_short_blindness(
    config: Config, keys: Keys, clock: Clock, probed: list[str]
) -> None:
    watcher = Watcher(config, keys)
    watcher.look(0)
    keys.error = ConsulTimedOut("hangs")
    clock.now = 1003.0
    assert isinstance(watcher.look(0), Blind)
    keys.error = None
    clock.now = 1000.0 + config.lease.wait / 2
    view = cluster(watcher.look(0))
    assert view.last_heartbeat.first_seen == 1000.0
    assert view.readable_since == clock.now, "reading works again since now"


@pytest.mark.parametrize("error", [ConsulTimedOut("hangs"), None], ids=["blind", "frozen"])
def test_after_a_longer_blindness_the_same_value_is_a_new_last_heartbeat(
    config: Config, keys: Keys, clock: Clock, probed: list[str], error: ConsulError | None
) -> None:
    """Consul was restored to it, say: the holder may have sent others meanwhile."""
    watcher = Watcher(config, keys)
    watcher.look(0)
    if error is not None:
        for clock.now in (1001.0, 1003.0, 1005.0):
            keys.error = error
            assert isinstance(watcher.look(0), Blind)
        keys.error = None
    clock.now = 1000.1 + config.lease.wait / 2
    view = cluster(watcher.look(0))
    assert view.last_heartbeat.first_seen == view.readable_since == clock.now
    clock.now += 1.0
    assert cluster(watcher.look(0)).last_heartbeat == view.last_heartbeat


def test_a_time_without_answers_is_no_time_in_which_a_heartbeat_was_seen(
    config: Config, keys: Keys, clock: Clock, probed: list[str]
) -> None:
    """The value is the same for all that anybody knows: evidence, though not proof, that its holder
    is dead. Else a Consul that is away now and then would keep everybody from taking over."""
    watcher = Watcher(config, keys)
    first = cluster(watcher.look(0)).last_heartbeat
    for _ in range(3):
        clock.now += config.lease.wait
        later = cluster(watcher.look(0)).last_heartbeat
    assert (later.first_seen, later.evident_since) == (clock.now, first.first_seen)


def test_a_process_that_stood_still_within_a_look_has_seen_nothing_unchanged(
    config: Config, keys: Keys, clock: Clock, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher(config, keys)
    for clock.now in (1000.0, 1004.0):
        watcher.look(0)

    def thawed(node: str) -> str:
        clock.now = 1074.0
        return "critical"

    monkeypatch.setattr(keys, "node_health", thawed)
    assert cluster(watcher.look(0)).last_heartbeat.first_seen == 1074.0
    assert cluster(watcher.look(0)).last_heartbeat.first_seen == 1074.0


def test_answers_that_are_slow_one_after_the_other_are_no_blindness(
    config: Config, keys: Keys, clock: Clock, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher(config, keys)
    health = keys.node_health

    def slow(node: str) -> str:
        clock.now += 1.9
        return health(node)

    monkeypatch.setattr(keys, "node_health", slow)
    for _ in range(4):
        view = cluster(watcher.look(0))
        clock.now += 3.1
    assert (view.holder_health, view.last_heartbeat.first_seen) == ("passing", 1000.0)
    assert clock.now > 1000.0 + config.lease.wait


def test_an_index_that_goes_back_starts_the_wait_again(
    config: Config, keys: Keys, clock: Clock
) -> None:
    backup = keys.state.snapshot()
    keys.set("leader", b"something else meanwhile")
    beat(keys, 1)
    watcher = Watcher(config, keys)
    watcher.look(0)
    keys.state.restore(backup)
    clock.now = 1002.0
    assert cluster(watcher.look(0)).last_heartbeat.first_seen == 1002.0


def test_keys_that_are_gone_are_a_last_heartbeat_too(
    config: Config, keys: Keys, clock: Clock
) -> None:
    watcher = Watcher(config, keys)
    watcher.look(0)
    for entry in keys.entries.values():
        keys.delete(entry.key)
    clock.now = 1002.0
    view = cluster(watcher.look(0, fresh=True))
    assert (view.epoch, view.leader, view.last_heartbeat.identity) == (None, None, None)
    assert view.last_heartbeat.first_seen == 1002.0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConsulTimedOut("x"), Reason.CONSUL_TIMEOUT),
        (ConsulNoQuorum("x"), Reason.CONSUL_NO_QUORUM),
        (ConsulLimited("x"), Reason.CONSUL_LIMITED),
        (ConsulDenied("x"), Reason.CONSUL_DENIED),
        (ConsulGarbled("x"), Reason.CONSUL_GARBLED),
        (ConsulUnreachable("x"), Reason.CONSUL_UNREACHABLE),
        (ConsulError("x"), Reason.CONSUL_UNREACHABLE),
        (ForeignValue("x"), Reason.FOREIGN_VALUE),
    ],
)
def test_what_can_not_be_read_is_blindness(
    config: Config, keys: Keys, error: Exception, reason: Reason
) -> None:
    keys.error = error
    assert Watcher(config, keys).look(0) == Blind(reason, "x")


@pytest.mark.parametrize("name", ["epoch", "leader", "pause", "history/3", "standbys/n1"])
@pytest.mark.parametrize("value", [b"", b"[]", b"7", b'{"v":1}', b"\xff"])
def test_a_foreign_value_blinds_and_names_its_key(
    config: Config, keys: Keys, name: str, value: bytes
) -> None:
    keys.set(name, value)
    view = Watcher(config, keys).look(0)
    assert isinstance(view, Blind) and view.reason is Reason.FOREIGN_VALUE
    assert PREFIX + name in view.sentence


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("history/4", HistoryEntry(5, "n2", None, "takeover", None, None, 5.0)),
        ("history/04", HistoryEntry(4, "n2", None, "takeover", None, None, 5.0)),
        ("standbys/n1", StandbyRecord("n2", 4, "services@20261122T101500Z", "c0ffee", 6.0)),
    ],
)
def test_a_record_of_something_else_than_its_key_is_foreign(
    config: Config, keys: Keys, name: str, record: HistoryEntry | StandbyRecord
) -> None:
    keys.set(name, record.dump())
    view = Watcher(config, keys).look(0)
    assert isinstance(view, Blind) and view.reason is Reason.FOREIGN_VALUE
    assert PREFIX + name in view.sentence


def test_keys_of_others_under_the_prefix_are_passed_over(config: Config, keys: Keys) -> None:
    for name in ("notes", "history/", "history/x", "history/\u00b2", "standbys/", "epoch/x"):
        keys.set(name, b"whatever")
    view = cluster(Watcher(config, keys).look(0))
    assert (view.epoch, view.history, view.standbys) == (4, {}, {})


def test_all_that_is_known_is_put_together(config: Config, keys: Keys) -> None:
    history_entry = HistoryEntry(4, "n2", None, "takeover", None, None, 5.0)
    record = StandbyRecord("n1", 4, "services@20261122T101500Z", "c0ffee", 6.0)
    pause = Pause("ops", "disk swap", 7.0)
    for name, value in (
        ("history/4", history_entry.dump()),
        ("standbys/n1", record.dump()),
        ("pause", pause.dump()),
    ):
        keys.set(name, value)
    view = assemble(config, keys.entries, LastHeartbeat(None, 0, 0.0))
    assert (view.epoch, view.history, view.standbys) == (4, {4: history_entry}, {"n1": record})
    assert view.pause == pause
    assert view.highest_epoch == 4


def test_a_hold_that_is_no_record_is_one_of_its_node_alone(config: Config, keys: Keys) -> None:
    hold = Hold("n2", "ops", "disk swap", 7.0)
    keys.set("holds/n2", hold.dump())
    keys.set("holds/n3", b"by hand")
    keys.set("holds/", b"")
    view = assemble(config, keys.entries, LastHeartbeat(None, 0, 0.0))
    assert view.holds["n2"] == hold
    assert set(view.holds) == {"n2", "n3"} and "holds/n3" in view.holds["n3"].reason


@pytest.mark.parametrize("name", ["leader", "history/7", "standbys/n1"])
def test_each_key_may_tell_of_a_higher_epoch_than_the_epochs_own(
    config: Config, keys: Keys, name: str
) -> None:
    snapshot = "services@20261122T101500Z"
    values = {
        "leader": Leader(7, Holder("n1", "1"), 9, LeaderState.CLEAN, ()).dump(),
        "history/7": HistoryEntry(7, "n1", None, "takeover", None, 0.0, 1e9).dump(),
        "standbys/n1": StandbyRecord("n1", 7, snapshot, "id", 1e9).dump(),
    }
    keys.set("epoch", dump_epoch(4))
    keys.set(name, values[name])
    keys.set("history/007x", b"{}")
    view = assemble(config, keys.entries, LastHeartbeat(None, 0, 0.0))
    assert (view.epoch, view.highest_epoch) == (4, 7)


def test_details_are_read_again_only_when_they_may_have_changed(
    config: Config, keys: Keys, clock: Clock
) -> None:
    watcher = Watcher(config, keys)
    for seq, clock.now in ((1, 1000.0), (2, 1002.0), (3, 1009.0)):
        beat(keys, seq)
        watcher.look(0)
    assert keys.reads.count("details") == 1
    clock.now = 1010.0
    beat(keys, 4)
    watcher.look(0)
    assert keys.reads.count("details") == 2


def test_a_new_epoch_in_the_heartbeat_has_the_details_read_at_once(
    config: Config, keys: Keys, clock: Clock
) -> None:
    watcher = Watcher(config, keys)
    watcher.look(0)
    keys.set("epoch", dump_epoch(5))
    beat(keys, 1, epoch=5)
    assert cluster(watcher.look(0)).epoch == 5


def test_an_epoch_counts_from_when_it_was_first_seen_and_whether_it_was_seen_to_begin(
    config: Config, keys: Keys, clock: Clock
) -> None:
    watcher = Watcher(config, keys)

    def look(epoch: int, at: float) -> Beginning | None:
        clock.now = at
        keys.set("epoch", dump_epoch(epoch))
        beat(keys, int(at), epoch=epoch)
        return cluster(watcher.look(0)).beginning

    assert look(5, 1000.0) == Beginning(5, 1000.0, witnessed=False)
    assert look(5, 1005.0) == Beginning(5, 1000.0, witnessed=False)
    assert look(6, 1010.0) == Beginning(6, 1010.0, witnessed=True)
    assert look(6, 1015.0) == Beginning(6, 1010.0, witnessed=True)
    assert look(7, 3000.0) == Beginning(7, 3000.0, witnessed=False), "this node stood still"
    keys.error = ConsulTimedOut("hangs")
    assert isinstance(watcher.look(0), Blind)
    keys.error = None
    assert look(8, 3001.0) == Beginning(8, 3001.0, witnessed=False), "it may have begun long before"


def test_a_fresh_look_reads_everything_without_waiting(config: Config, keys: Keys) -> None:
    watcher = Watcher(config, keys)
    watcher.look(0)
    keys.reads.clear()
    watcher.look(1.0, fresh=True)
    assert keys.reads == ["wait:0", "details"]


def test_the_index_is_waited_on_and_forgotten_after_an_error(config: Config, keys: Keys) -> None:
    watcher = Watcher(config, keys)
    watcher.look(0)
    watcher.look(1.0)
    keys.error = ConsulTimedOut("hangs")
    watcher.look(1.0)
    watcher.look(1.0)
    waits = [read for read in keys.reads if read.startswith("wait")]
    keys.error = None
    index = index_of(keys)
    assert waits == ["wait:0", f"wait:{index}", f"wait:{index}", "wait:0"]


def test_a_primary_that_heartbeats_is_not_probed(
    config: Config, keys: Keys, clock: Clock, probed: list[str]
) -> None:
    watcher = Watcher(config, keys)
    for seq in range(5):
        clock.now += 2.0
        beat(keys, seq)
        watcher.look(0)
    assert probed == []
    assert not [read for read in keys.reads if read.startswith("health")]


def test_a_silent_primary_is_probed_and_gossip_is_asked(
    config: Config, keys: Keys, clock: Clock, probed: list[str]
) -> None:
    watcher = Watcher(config, keys)
    watcher.look(0)
    keys.gossip("n2", "critical")
    clock.now = 1004.0
    view = cluster(watcher.look(0))
    assert (view.holder_health, view.holder_unanswered_s) == ("critical", 0.0)
    assert view.alive == frozenset()
    clock.now = 1007.0
    view = cluster(watcher.look(0))
    assert view.holder_unanswered_s == 3.0, "counted from the first probe without an answer"
    assert view.alive == {"n3"}, "past half of W the other candidates are looked at"
    assert probed == ["192.168.1.3:7301"] * 2


def test_a_silent_primary_is_probed_while_consul_can_not_be_read(
    config: Config, keys: Keys, clock: Clock, probed: list[str]
) -> None:
    """It led Consul, too: what it doesn't answer meanwhile counts when there is a leader again."""
    watcher = Watcher(config, keys)
    watcher.look(0)
    keys.error = ConsulError("no leader")
    for clock.now in (1004.0, 1008.0, 1012.0):
        assert isinstance(watcher.look(0), Blind)
    assert probed == ["192.168.1.3:7301"] * 3
    keys.error = None
    clock.now = 1016.0
    view = cluster(watcher.look(0))
    assert view.holder_unanswered_s == 12.0
    # The wait for the end of its lease begins anew, as somebody else may have had it: not this.
    assert view.last_heartbeat.first_seen == 1016.0
    clock.now = 1017.0
    assert cluster(watcher.look(0)).holder_unanswered_s == 13.0
    beat(keys, 2)
    clock.now = 1018.0
    assert cluster(watcher.look(0)).holder_unanswered_s == 0.0


def test_a_primary_that_may_heartbeat_unseen_is_not_probed_at_once(
    config: Config, keys: Keys, clock: Clock, probed: list[str]
) -> None:
    watcher = Watcher(config, keys)
    watcher.look(0)
    keys.error = ConsulError("no leader")
    clock.now = 1002.0
    watcher.look(0)
    assert probed == []


def test_a_wrong_name_is_asked_for_again_while_the_primary_is_silent(
    config: Config, keys: Keys, clock: Clock, probed: list[str]
) -> None:
    """It bars a promotion, and somebody has just mended it."""
    keys.agents["n1"].node = "n1.lan"
    watcher = Watcher(config, keys)
    assert cluster(watcher.look(0)).named == "n1.lan"
    keys.agents["n1"].node = "n1"
    for _ in range(70):
        clock.now += 1
        view = cluster(watcher.look(0))
    assert view.named == "n1"


def test_one_answer_starts_the_count_again(
    config: Config, keys: Keys, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = iter([False, False, True, False, False])
    monkeypatch.setattr(watcher_module, "answers", lambda *_: next(replies))
    watcher = Watcher(config, keys)
    watcher.look(0)
    unanswered = []
    for clock.now in (1004.0, 1006.0, 1008.0, 1010.0, 1012.0):
        unanswered.append(cluster(watcher.look(0)).holder_unanswered_s)
    assert unanswered == [0.0, 2.0, 0.0, 0.0, 2.0]


def test_a_heartbeat_starts_the_count_again(
    config: Config, keys: Keys, clock: Clock, probed: list[str]
) -> None:
    watcher = Watcher(config, keys)
    watcher.look(0)
    clock.now = 1006.0
    watcher.look(0)
    beat(keys, 2)
    watcher.look(0)
    clock.now = 1012.0
    assert cluster(watcher.look(0)).holder_unanswered_s == 0.0


@pytest.mark.parametrize("holder", ["n1", "n9"], ids=["this node", "an unknown one"])
def test_nobody_probes_itself_or_a_stranger(
    config: Config, keys: Keys, clock: Clock, probed: list[str], holder: str
) -> None:
    beat(keys, 1, holder=Holder(holder, "boot-1"))
    watcher = Watcher(config, keys)
    watcher.look(0)
    clock.now = 1030.0
    assert cluster(watcher.look(0)).holder_unanswered_s == 0.0
    assert probed == []


def test_a_role_that_was_given_up_needs_no_evidence(
    config: Config, keys: Keys, clock: Clock, probed: list[str]
) -> None:
    beat(keys, 2, state=LeaderState.CLEAN)
    watcher = Watcher(config, keys)
    watcher.look(0)
    clock.now = 1030.0
    watcher.look(0)
    assert probed == []


@pytest.fixture
def port() -> Iterator[Callable[[bool], int]]:
    sockets: list[socket.socket] = []

    def take(listens: bool) -> int:
        sockets.append(socket.socket())
        sockets[-1].bind(("127.0.0.1", 0))
        if listens:
            sockets[-1].listen()
        return int(sockets[-1].getsockname()[1])

    yield take
    for sock in sockets:
        sock.close()


ANSWERS: Mapping[str, tuple[bool, bool, bool]] = {
    # listens -> the machine answers, the NFS port lets us in
    "listens": (True, True, True),
    "refuses": (False, True, False),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_port_that(case: str, port: Callable[[bool], int]) -> None:
    listens, alive, nfs = ANSWERS[case]
    number = port(listens)
    let_in = lets_in("127.0.0.1", number, Deadline.after(5.0))
    assert (answers("127.0.0.1", number), let_in) == (alive, nfs)


def test_a_name_that_leads_nowhere_is_no_answer() -> None:
    assert not answers("no-such-host.invalid", 8301)
    assert not lets_in("no-such-host.invalid", 2049, Deadline.after(5.0))


def test_a_name_server_that_hangs_is_waited_for_until_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_go, real = threading.Event(), socket.getaddrinfo

    def hangs(*given: Any, **more: Any) -> Any:
        return real(*given, **more) if more.get("flags") else let_go.wait(60)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    began = monotonic()
    assert not answers("hangs.example", 8301)
    assert not lets_in("hangs.example", 2049, Deadline.after(0.1))
    assert "in time" in (null_call("hangs.example", 2049, Deadline.after(0.1)) or "")
    assert monotonic() - began < 30
    let_go.set()


@pytest.mark.parametrize("address", ["", "a\0b", "x" * 300, "1.2.3.4.5", "fe80::1%nowhere", ".."])
def test_an_address_that_is_none_does_not_answer(address: str) -> None:
    assert not lets_in(address, 1, Deadline.after(5.0))
    assert null_call(address, 1, Deadline.after(5.0))


def test_after_what_kept_a_primary_from_its_heartbeats_it_gets_a_chance_first(
    config: Config, keys: Keys, clock: Clock, probed: list[str]
) -> None:
    watcher = Watcher(config, keys)
    watcher.look(0)
    clock.now = 1005.0
    assert cluster(watcher.look(0)).readable_since == 1000.0
    watcher.distrust()
    clock.now = 1006.0
    view = cluster(watcher.look(0))
    assert (view.last_heartbeat.first_seen, view.readable_since) == (1000.0, 1006.0)
    good = keys.state.snapshot()
    keys.set("leader", b"not ours")
    clock.now = 1007.0
    assert isinstance(watcher.look(0), Blind)
    keys.state.restore(good)
    clock.now = 1008.0
    view = cluster(watcher.look(0))
    assert (view.last_heartbeat.first_seen, view.readable_since) == (1008.0, 1008.0)


# What Consul's agent here is called


def test_the_agents_name_is_asked_at_the_start_and_now_and_then(
    config: Config, keys: Keys, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be started again under another one."""
    watcher = Watcher(config, keys)
    assert cluster(watcher.look(0)).named == "n1"
    keys.agents["n1"].node = "n1.lan"
    clock.now += watcher_module.NAME_EVERY_S - 1.0
    beat(keys, 2)
    assert cluster(watcher.look(0)).named == "n1"
    clock.now += 1.0
    beat(keys, 3)
    assert cluster(watcher.look(0)).named == "n1.lan"
    monkeypatch.setattr(keys, "node_name", refuses)
    clock.now += watcher_module.NAME_EVERY_S
    beat(keys, 4)
    assert cluster(watcher.look(0)).named == "n1.lan", "what is not answered is as it was"


def test_an_agent_that_hangs_costs_no_failover_its_time(
    config: Config, keys: Keys, clock: Clock, probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher(config, keys)
    watcher.look(0)

    def hangs(**_: object) -> str:
        pytest.fail("it was asked while the primary is silent")

    monkeypatch.setattr(keys, "node_name", hangs)
    clock.now += watcher_module.NAME_EVERY_S
    watcher.look(0)


def test_without_an_answer_the_name_is_not_known_and_nothing_else_is_missed(
    config: Config, keys: Keys, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "node_name", refuses)
    view = cluster(Watcher(config, keys).look(0))
    assert (view.named, view.epoch) == (None, 4)


def refuses(**_: object) -> str:
    raise ConsulUnreachable("connection refused")
