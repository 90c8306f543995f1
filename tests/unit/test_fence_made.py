"""What the rules of a node are made for changes only while no server can need them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from standfast import guard
from standfast.agent import main as agent
from standfast.assembly.node import lease_parts
from standfast.assembly.parts import Parts
from standfast.config.model import Config
from standfast.config.problems import InvalidConfig
from standfast.errors import Refused, StandfastError
from standfast.fence import choice as fence_module
from standfast.fence.choice import fence_from, settle
from standfast.fence.ipset import IpsetFence
from standfast.fence.kernel import KernelFence
from standfast.fence.made_for import MadeFor
from standfast.fence.nftables import NftFence
from standfast.lease import cutoff
from standfast.lease import process as lease
from standfast.node.ports import FenceState
from standfast.reasons import Reason
from standfast.system.clock import Deadline, monotonic
from tests.fakes.machine import FakeNfs, World
from tests.support.configs import config_in


class FenceCut(Exception):
    pass


@dataclass
class PortRules:
    """Which port each backend's rules shut; `cut`: the process ends before so many steps more."""

    rules: dict[str, int] = field(default_factory=dict)
    cut: int = 99

    def step(self) -> None:
        self.cut -= 1
        if self.cut < 0:
            raise FenceCut


class Rules(KernelFence):
    def __init__(self, kernel: PortRules, backend: str, port: int, run: Path, volume: str) -> None:
        self.backend = backend
        super().__init__(port, run, volume)
        self.kernel = kernel

    def _state(self) -> FenceState:
        return FenceState(self.kernel.rules.get(self.backend) == self.port, 0.0)

    def _build(self, deadline: Deadline) -> None:
        self.kernel.step()
        self.kernel.rules[self.backend] = self.port

    def remove(self, deadline: Deadline) -> None:
        self.kernel.step()
        self.kernel.rules.pop(self.backend, None)

    def _permit(self, until: float, latest: float) -> bool:
        return self._state().in_place


@dataclass
class TwoVolumes:
    """A node with two volumes, whose processes begin with what is configured at that moment."""

    config: Config
    nfs: FakeNfs = field(default_factory=lambda: FakeNfs(World()))
    kernel: PortRules = field(default_factory=PortRules)

    @property
    def directory(self) -> Path:
        return self.config.paths.run / "fence"

    @property
    def made_for(self) -> MadeFor | None:
        return MadeFor.load(self.directory)

    def by(self, backend: str, port: int, directory: Path, volume: str) -> Rules:
        return Rules(self.kernel, backend, port, directory, volume)

    def fence(self, config: Config) -> Rules:
        return self.by(config.fence.backend, config.nfs.port, self.directory, config.volume)

    def begin(self, config: Config) -> Rules:
        """A process that has settled, and put the rules in place as each of them does."""
        fence = self.fence(config)
        settle(config, fence, self.nfs)
        fence.ensure_closed()
        return fence


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TwoVolumes:
    made = TwoVolumes(configured(config_in(tmp_path, "n1", "n2")))
    monkeypatch.setattr(fence_module, "_by", made.by)
    monkeypatch.setattr(Parts, "fence", lambda _, config: made.fence(config))
    monkeypatch.setattr(Parts, "nfs", lambda _, __: made.nfs)
    return made


def configured(config: Config, port: int = 2049, backend: str = "nftables") -> Config:
    nfs = replace(config.nfs, port=port)
    return replace(config, nfs=nfs, fence=replace(config.fence, backend=backend))


OTHERS = [(20490, "nftables"), (2049, "ipset"), (20490, "ipset")]
other_way = pytest.mark.parametrize(("port", "backend"), OTHERS)


def serve(node: TwoVolumes, _fence: Rules) -> None:
    node.nfs.running = True


def claim(_node: TwoVolumes, fence: Rules) -> None:
    fence.claim()


@other_way
@pytest.mark.parametrize("in_use", [serve, claim])
def test_rules_that_a_server_may_need_are_not_made_for_something_else(
    node: TwoVolumes, port: int, backend: str, in_use: Callable[[TwoVolumes, Rules], None]
) -> None:
    """The server listens where it did, whatever the configuration says by now."""
    old = node.begin(node.config)
    in_use(node, old)
    other = replace(configured(node.config, port, backend), volume="music")
    way_out = "set it back. To change it, make this node a standby first"
    for config in (configured(node.config, port, backend), other):
        with pytest.raises(InvalidConfig, match=r"shuts port 2049 by nftables .*") as refused:
            node.begin(config)
        assert way_out in str(refused.value)
    assert node.kernel.rules == {"nftables": 2049}
    assert node.made_for == MadeFor(2049, "nftables")
    node.begin(node.config)
    assert old.state().in_place


def test_the_refusal_names_the_key_that_was_changed(node: TwoVolumes) -> None:
    node.begin(node.config)
    node.nfs.running = True
    changed = {(20490, "nftables"): ["nfs.port"], (2049, "ipset"): ["fence.backend"]}
    for (port, backend), keys in changed.items():
        with pytest.raises(InvalidConfig) as refused:
            node.begin(configured(node.config, port, backend))
        assert [problem.key for problem in refused.value.problems] == keys


@other_way
def test_where_nothing_is_served_the_old_rules_go_and_the_new_ones_come(
    node: TwoVolumes, port: int, backend: str
) -> None:
    node.begin(node.config)
    node.begin(configured(node.config, port, backend))
    assert node.kernel.rules == {backend: port}
    assert node.made_for == MadeFor(port, backend)


@other_way
@pytest.mark.parametrize("cut", range(3))
@pytest.mark.parametrize("next_one", ["the new one", "the old one"])
def test_cut_off_anywhere_who_goes_on_has_the_one_fence_of_the_node(
    node: TwoVolumes, port: int, backend: str, cut: int, next_one: str
) -> None:
    """Nobody has both rules, or goes by rules that aren't there."""
    new = configured(node.config, port, backend)
    old = node.begin(node.config)
    node.kernel.cut = cut
    with contextlib.suppress(FenceCut):
        node.begin(new)
    node.kernel.cut = 99
    running = next_one == "the old one"
    fence = old if running else node.begin(new)
    with contextlib.suppress(Refused):
        fence.ensure_closed()  # as each look does
        fence.claim()
    assert len(node.kernel.rules) <= 1
    made_for = node.made_for
    assert made_for is not None
    assert node.kernel.rules in ({}, {made_for.backend: made_for.port})
    if running and made_for != fence.made_for:
        assert not fence.state().in_place, "the guard lets no server start"


@other_way
def test_a_process_of_before_the_change_touches_nothing_any_more(
    node: TwoVolumes, port: int, backend: str
) -> None:
    """Two would replace each other's rules in turns."""
    old = node.begin(node.config)
    new = node.begin(configured(node.config, port, backend))
    deeds: tuple[Callable[[], object], ...] = (
        old.ensure_closed,
        old.claim,
        lambda: old.arm(monotonic() + 60, monotonic() + 60),
    )
    for deed in deeds:
        with pytest.raises(Refused, match="restart it") as refused:
            deed()
        assert refused.value.reason is Reason.FENCE_NOT_ARMED
    assert node.kernel.rules == {backend: port}
    assert not new.claims.holders()
    assert new.state().in_place
    # One that serves all the same is stopped.
    node.nfs.running = True
    assert cutoff.confirm_shut(old, node.nfs, monotonic() + 1) is cutoff.Found.NO_SERVER
    assert not node.nfs.running


def test_a_claim_is_given_up_by_a_process_of_before_the_change(node: TwoVolumes) -> None:
    old = node.begin(node.config)
    node.begin(configured(node.config, 20490)).claim()
    old.release()
    assert not old.state().claimed


def test_who_starts_as_configured_before_waits_for_nobody(node: TwoVolumes) -> None:
    fence = node.begin(node.config)
    with fence.claims.alone(Deadline.after(1)):
        settle(node.config, node.fence(node.config), node.nfs)


def test_a_note_that_says_nothing_is_not_guessed(node: TwoVolumes) -> None:
    fence = node.begin(node.config)
    node.nfs.running = True
    for garbage in ("", "[]", "{}", '{"port": "2049", "backend": "nftables"}'):
        (node.directory / "made-for").write_text(garbage)
        with pytest.raises(StandfastError, match="made-for"):
            node.begin(node.config)
        with pytest.raises(StandfastError, match="made-for"):
            fence.ensure_closed()


@pytest.mark.parametrize("process", ["agent", "lease"])
def test_a_process_of_a_changed_port_begins_nothing(
    node: TwoVolumes, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would replace the rules that shut the server which is running."""

    def begun(*_: object) -> None:
        pytest.fail("it has begun")

    def build(config: Config) -> Any:
        return SimpleNamespace(machine=SimpleNamespace(fence=node.fence(config), nfs=node.nfs))

    monkeypatch.setattr(agent, "serve", begun)
    monkeypatch.setattr(lease, "run", begun)
    node.begin(node.config)
    node.nfs.running = True
    with pytest.raises(InvalidConfig, match=r"nfs\.port = 20490: this node's fence shuts port"):
        if process == "agent":
            agent.main(configured(node.config, 20490), build)
        else:
            lease.main(configured(node.config, 20490), lease_parts)
    assert node.kernel.rules == {"nftables": 2049}


def test_no_server_starts_where_the_rules_are_made_for_another_port(node: TwoVolumes) -> None:
    node.begin(node.config)
    with pytest.raises(Refused, match="with nothing served") as refused:
        guard.judge(configured(node.config, 20490), Deadline.after(5))
    assert refused.value.reason is Reason.CONFIG_INVALID


def test_auto_is_what_it_means_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Naming it is no change."""
    config = configured(config_in(tmp_path), backend="auto")
    (tmp_path / "run/fence").mkdir(parents=True)
    (tmp_path / "run/fence/backend").write_text("ipset")
    for backend, kind in (("auto", IpsetFence), ("ipset", IpsetFence), ("nftables", NftFence)):
        fence = fence_from(configured(config, backend=backend))
        assert type(fence) is kind
        monkeypatch.setattr(kind, "_build", lambda *_: None)
        monkeypatch.setattr(IpsetFence, "remove", lambda *_: None)
        settle(config, fence, FakeNfs(World()))
        assert MadeFor.load(tmp_path / "run/fence") == fence.made_for
