"""Before Nomad starts on a node that was primary: its servers place nothing there."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from standfast.cli import nomad_boot
from standfast.config.model import Config, Paths
from standfast.config.nomad import NomadAccess
from standfast.consul.gateway import ConsulGateway, Instance
from standfast.consul.records import LeaderState
from standfast.errors import TimedOut
from standfast.lease.files import LeaseStatus
from standfast.nomad.observation import Role
from standfast.system.clock import monotonic
from tests.fakes.nomad_world import FakeNomad, NomadClient, NomadWorld, job
from tests.support.observations import config

CONFIG = config("a", nomad=NomadAccess())


@pytest.fixture
def world() -> Iterator[NomadWorld]:
    """`a` died as primary; nobody has quarantined it."""
    made = NomadWorld({"a": NomadClient("a"), "b": NomadClient("b")}, [job("db")])
    made.clients["a"].local = True
    made.propagate()
    made.kill("a")
    yield made


def quarantine(world: NomadWorld) -> Sequence[str]:
    return nomad_boot.quarantine_own(CONFIG, FakeNomad(world, "b"), world.consul)


def test_a_node_with_the_meta_of_before_comes_back_without_jobs(world: NomadWorld) -> None:
    assert "takes no jobs" in quarantine(world)[0]
    world.revive("a")
    assert world.where("db") == []
    follower = world.follower(CONFIG)
    follower.round(Role.STANDBY, 0)
    world.propagate()
    for _ in range(2):
        follower.round(Role.STANDBY, 0)
    assert world.clients["a"].eligible and world.where("db") == []


def test_without_it_the_job_would_be_there_at_once(world: NomadWorld) -> None:
    world.revive("a")
    assert world.where("db") == ["a"]


def test_a_node_without_the_meta_or_that_is_ineligible_already_is_left_alone(
    world: NomadWorld,
) -> None:
    world.disable("a")
    assert quarantine(world) == []
    world.clients["a"].visible = False
    world.enable("a")
    assert quarantine(world) == []
    assert world.log == []


def run(made: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The status and how often it was tried."""
    tries = []

    def attempt(_: Config) -> Sequence[str]:
        tries.append(1)
        raise TimedOut("nobody there")

    monkeypatch.setattr(nomad_boot, "load_volume", lambda *_, **__: made)
    monkeypatch.setattr(nomad_boot, "attempt", attempt)
    monkeypatch.setattr(nomad_boot, "LIMIT_S", 0.2)
    monkeypatch.setattr(nomad_boot, "AGAIN_S", 0.05)
    return nomad_boot.run(argparse.Namespace(volume="data")), len(tries)


def test_it_tries_for_a_while_and_is_never_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config("a", nomad=NomadAccess(), paths=Paths(run=tmp_path))
    status, tries = run(made, monkeypatch)
    assert status == 0 and tries > 1


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ("", "10.0.0.2:4646"),
        ("http://127.0.0.1:4646", "10.0.0.2:4646"),
        ("https://127.0.0.1:4646", "https://10.0.0.2:4646"),
    ],
)
def test_others_are_asked_as_the_own_agent_is(own: str, theirs: str) -> None:
    """The token goes to them, too."""
    made = config("a", nomad=NomadAccess(address=own))

    class Catalog:
        def instances(self, _service: str, *, consistent: bool) -> tuple[Instance, ...]:
            assert not consistent
            return tuple(
                Instance("n", node, address, 4646, {}, "passing", "passing")
                for node, address in ((made.node, "10.0.0.1"), ("other", "10.0.0.2"))
            )

    assert list(nomad_boot.addresses(made, cast(ConsulGateway, Catalog()))) == [theirs]


def test_a_primary_whose_nomad_is_only_restarted_keeps_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config("a", nomad=NomadAccess(), paths=Paths(run=tmp_path))
    until = monotonic() + 60
    LeaseStatus(5, "i", 1, LeaderState.SERVING, True, until, until, 1, monotonic()).save(
        made.run_dir
    )
    assert run(made, monkeypatch) == (0, 0)


def test_where_nomad_is_not_configured_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(config("a"), monkeypatch) == (0, 0)
