"""Whatever happens in whatever order, a client ends at the right mount and spares a healthy one."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from standfast.clients import notes
from standfast.clients.decide import Action, decide
from standfast.clients.observation import (
    Answer,
    NoServer,
    Note,
    Observed,
    Role,
    Server,
    Service,
    Tie,
    Unreadable,
)
from standfast.clients.plan import Do, plan_for
from standfast.config.client import Client
from standfast.reasons import Reason
from standfast.system.mountinfo import Mount, wire_fsid
from tests.fakes.client import FakeClient, fake_client, fsid
from tests.support.configs import config_in

A, B = "192.168.1.2", "192.168.1.3"
CONFIG = structs.replace(
    config_in(Path("/x")), node="client", client=Client(spread=0.0, binds=("/srv/a",))
)
PATH, LIVE = str(CONFIG.paths.bind), str(CONFIG.paths.live)
TREES = {1: (A, 1), 2: (B, 2), 3: (A, 3)}
"""Epoch -> who served which tree."""


def server(epoch: int) -> Server:
    address, tree = TREES[epoch]
    return Server(address, address, frozenset({address}), epoch, fsid(tree))


def nfs(epoch: int, number: int = 30, point: str = PATH) -> Mount:
    address, tree = TREES[epoch]
    options = f"rw,vers=4.2,addr={address}"
    return Mount(f"0:{tree}", "/", point, "nfs4", number, f"name:{LIVE}", options)


AUTOFS = Mount("0:90", "/", PATH, "autofs", 20, "systemd-1")
FOREIGN = Mount("0:91", "/", PATH, "tmpfs", 21, "tmpfs")
OTHER_EXPORT = replace(nfs(1), source="nas:/export", options="addr=10.0.0.1")
STACKS: tuple[tuple[Mount, ...], ...] = (
    (), (AUTOFS,), (FOREIGN,), (OTHER_EXPORT,), (FOREIGN, nfs(1)),
    *((nfs(epoch),) for epoch in TREES), *((AUTOFS, nfs(epoch)) for epoch in TREES),
    (nfs(1), nfs(2, 31)),
)  # fmt: skip
SERVICES: tuple[Service, ...] = (
    *map(server, TREES),
    replace(server(2), addresses=frozenset()),
    replace(server(2), fsid=None),
    NoServer("nobody"),
    Unreadable(Reason.CONSUL_TIMEOUT, "Consul hangs"),
)


def note(epoch: int, *, kind: str = "nfs", let_go: bool = False, mount_id: int = 30) -> Note:
    address, tree = TREES[epoch]
    return Note(kind, address, fsid(tree), epoch, mount_id, f"0:{tree}", let_go, confirmed=True)


NOTES = (
    None, *map(note, TREES), note(1, kind="bind"), note(1, let_go=True), note(2, mount_id=99),
)  # fmt: skip
TIES = (Tie(), Tie(unit=True), Tie(automount=True), Tie(automount=True, mounting=True))
WIRES = {f"0:{tree}": wire_fsid(fsid(tree)) or "" for tree in (1, 2, 3)}


def everything() -> Iterator[tuple[Observed, bool]]:
    """Each observation, and whether its mount is the right one and well."""
    for service, stack, noted, answer, role, tie, wires, left in itertools.product(
        SERVICES, STACKS, NOTES, Answer, Role, TIES, ({}, WIRES), ((), (nfs(1, 40, "/srv/a"),))
    ):
        observed = Observed(
            service, stack, noted, answer, role=role, tie=tie, wires=wires, elsewhere=left
        )
        well = (
            isinstance(service, Server)
            and bool(stack)
            and stack[-1].is_nfs
            and stack[-1].address in service.addresses
            and (service.fsid is None or stack[-1].device == f"0:{int(service.fsid[-12:])}")
            and answer is not Answer.STALE
        )
        # An answer can't come from a tree that is not there any more: such looks don't happen.
        if answer is Answer.ANSWERS and isinstance(service, Server) and service.fsid and stack:
            mine = stack[-1]
            if mine.is_nfs and mine.address in service.addresses and not well:
                continue
        yield observed, well


def test_every_observation_has_a_decision_that_spares_what_is_well() -> None:
    count = 0
    for observed, well in everything():
        count += 1
        decision = decide(observed, CONFIG)
        assert decision.sentence
        steps = {step.do for step in plan_for(decision, observed, CONFIG)}
        takes_away = Do.LET_GO in steps
        if observed.role is not Role.NONE:
            assert Do.MOUNT not in steps
            assert not takes_away or FOREIGN in observed.stack
            continue
        assert not (well and takes_away), (observed, decision)
        if not isinstance(observed.service, Server):
            assert not steps
        if observed.top in (FOREIGN, OTHER_EXPORT):
            assert not steps
        if takes_away:
            assert decision.action is Action.REMOUNT
            assert [s.do for s in plan_for(decision, observed, CONFIG)].index(Do.MOUNT) == 2
        if isinstance(observed.service, Server) and observed.note is not None:
            lower = observed.service.epoch < observed.note.epoch
            assert not (lower and steps)
    assert count > 20_000


def test_nothing_right_is_missed() -> None:
    """A mount of another server or tree than a reachable one's never just stays."""
    for observed, well in everything():
        service, top = observed.service, observed.top
        if observed.role is not Role.NONE or not isinstance(service, Server) or well:
            continue
        if not service.addresses or (observed.note and service.epoch < observed.note.epoch):
            continue
        decision = decide(observed, CONFIG)
        if top is None or top.is_autofs:
            let_go = observed.note is not None and observed.note.let_go
            tied = observed.tie.mounting if top else observed.tie != Tie() or let_go
            assert (decision.action is Action.MOUNT) == tied
        elif top.is_nfs and top is not OTHER_EXPORT and top.address not in service.addresses:
            assert decision.reason is Reason.SERVER_MOVED
        elif top.is_nfs and top is not OTHER_EXPORT and observed.answer is Answer.STALE:
            assert decision.action is Action.REMOUNT


# Sequences of events on a client in memory

EVENTS = st.sampled_from(
    [
        *("failover-a", "failover-b", "promoted-anew", "rebooted-in-place"),
        *("die-a", "die-b", "back-a", "back-b", "consul-down", "consul-up", "nobody", "older"),
        *("access", "access-wrong", "expire", "handler", "handler", "timer", "cut"),
        *("fail:mount", "fail:let-go", "fail:restart", "fail:bind"),
    ]
)


class Story:
    """A client with an automount or a plain unit, and what befalls it."""

    def __init__(self, directory: Path, automount: bool, kernel: bool) -> None:
        self.client = fake_client(directory, binds=("/srv/a",), restart_units=("web.service",))
        self.client.kernel = kernel
        self.automount = automount
        if automount:
            self.client.tie_ = Tie(automount=True)
            self.client.push("autofs", source="systemd-1")
        self.epoch, self.tree, self.at = 1, 1, A
        self.client.serve(A, 1, 1)

    def tell(self, event: str) -> None:
        name, _, what = event.partition("-")
        client = self.client
        address = A if what == "a" else B
        if name == "failover" or event == "promoted-anew":
            address = self.at if event == "promoted-anew" else address
            self.epoch, self.tree, self.at = self.epoch + 1, self.tree + 1, address
            client.serve(address, self.epoch, self.tree)
        elif event == "rebooted-in-place":
            self.epoch += 1
            client.serve(self.at, self.epoch, self.tree)
        elif name in ("die", "back"):
            alive = self.tree if address == self.at else None
            client.trees[address] = None if name == "die" else alive
        elif name == "consul":
            client.consul_up = what == "up"
        elif event == "nobody":
            client.instances_ = []
        elif event == "older":
            # A follower that answers late, or a Consul restored from a backup.
            other = B if self.at == A else A
            before, client.trees[other] = client.trees.get(other), 9999
            client.serve(other, max(0, self.epoch - 1), 9999)
            client.trees[other] = before
        else:
            self._locally(event)

    def _locally(self, event: str) -> None:
        client = self.client
        top = client.top
        if event in ("access", "access-wrong"):
            address = self.at if event == "access" else (B if self.at == A else A)
            tree = client.trees.get(address)
            if self.automount and top is not None and top.is_autofs and tree is not None:
                client.mounted(address, tree)
        elif event == "expire" and top is not None and top.is_nfs:
            client.pop()
        elif event == "cut":
            note_ = notes.load(client.config.run_dir)
            if note_ is not None:
                (client.config.run_dir / "mounted.json").unlink()
        elif event.startswith("fail:"):
            client.fail = event.partition(":")[2]
        elif event in ("handler", "timer"):
            client.run(thorough=event == "handler")

    def end_well(self) -> None:
        """All is well again, somebody uses the path, and the timer runs as each minute."""
        client = self.client
        client.fail, client.consul_up = None, True
        client.serve(self.at, self.epoch, self.tree)
        for _ in range(2):
            client.run(thorough=True)
        if client.top is not None and client.top.is_autofs:
            client.mounted(self.at, self.tree)  # the next access
            client.run(thorough=True)


@given(st.lists(EVENTS, max_size=25), st.booleans(), st.booleans())
def test_any_order_of_events_ends_at_the_right_mount(
    events: list[str], automount: bool, kernel: bool
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr("standfast.clients.loop.sleep", lambda _: None)
        story = Story(Path(name), automount, kernel)
        client = story.client
        for event in events:
            story.tell(event)
        story.end_well()
        assert client.is_right(), client.table
        assert client.sins == []
        quiet = len(client.log)
        client.run(thorough=True)
        assert client.log[quiet:] == ["probe"], "a further look does nothing"


@pytest.mark.parametrize("length", [3])
def test_every_short_story(length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, so that none depends on luck."""
    monkeypatch.setattr("standfast.clients.loop.sleep", lambda _: None)
    words = (
        "failover-b", "promoted-anew", "die-a", "consul-down", "nobody", "older", "access",
        "access-wrong", "handler", "cut", "fail:mount",
    )  # fmt: skip
    for number, events in enumerate(itertools.product(words, repeat=length)):
        story = Story(tmp_path / str(number), automount=number % 2 == 0, kernel=number % 3 > 0)
        story.tell("handler")
        for event in events:
            story.tell(event)
        story.end_well()
        assert story.client.is_right() and not story.client.sins, events


def test_the_account_of_the_fake_notices_a_sin(tmp_path: Path) -> None:
    from standfast.system.clock import Deadline

    client: FakeClient = fake_client(tmp_path)
    client.serve(A, 1, 1)
    client.mounted(A, 1)
    client.let_go(client.path, Deadline.after(1))
    assert client.sins
