"""A node that is renamed in the configuration is refused before it takes itself for another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from standfast.agent import main as agent
from standfast.cli.main import main
from standfast.config.model import Config
from standfast.config.node_name import check_name, keep_name
from standfast.config.problems import InvalidConfig
from standfast.lease import process as lease
from standfast.node.own_epoch import OwnEpoch, Stage
from tests.support.configs import config_in
from tests.support.terminal import write_config

OWN = OwnEpoch(4, Stage.READY, "fsid-4", None, in_place=False, live_uuid="tree-4")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_in(tmp_path, "n1", "n2")


def renamed(config: Config) -> Config:
    """[nodes.n1] is [nodes.storage1] now, and nothing else has changed."""
    nodes = {"storage1" if name == "n1" else name: node for name, node in config.nodes.items()}
    return replace(config, node="storage1", nodes=nodes)


def test_the_name_is_remembered_at_the_first_start_and_never_changed(config: Config) -> None:
    check_name(config)
    keep_name(config)
    keep_name(config)
    with pytest.raises(InvalidConfig, match=r'node = "storage1": this node is "n1"'):
        keep_name(renamed(config))
    keep_name(config)


def test_who_goes_the_way_that_the_refusal_tells_may_rename(config: Config) -> None:
    keep_name(config)
    with pytest.raises(InvalidConfig, match=r"standfast switchover(.|\n)*delete that file") as said:
        check_name(renamed(config))
    path = config.state_dir / "node"
    assert str(path) in str(said.value)
    path.unlink()
    keep_name(renamed(config))
    with pytest.raises(InvalidConfig):
        check_name(config)


@pytest.mark.parametrize("process", [agent.main, lease.main])
def test_a_process_of_a_renamed_node_begins_nothing(
    config: Config, process: Callable[[Config, Callable[..., Any]], int]
) -> None:
    """Its decision would be to step down for itself."""
    keep_name(config)
    OWN.save(config.state_dir)

    def begun(*_: object) -> None:
        pytest.fail("it has begun")

    with pytest.raises(InvalidConfig, match="go back to that name"):
        process(renamed(config), begun)
    assert OwnEpoch.load(config.state_dir) == OWN


@pytest.mark.parametrize("process", [agent.main, lease.main])
def test_a_process_remembers_the_name_at_its_start(
    config: Config, process: Callable[[Config, Callable[..., Any]], int]
) -> None:
    class Begun(Exception):
        pass

    def begun(*_: object) -> None:
        raise Begun

    with pytest.raises(Begun):
        process(config, begun)
    with pytest.raises(InvalidConfig):
        check_name(renamed(config))


def test_config_check_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path / "etc"))
    path = write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])
    state = next(line for line in path.read_text().splitlines() if line.startswith("state"))
    noted = Path(state.split('"')[1]) / "data-services" / "node"
    noted.parent.mkdir(parents=True)
    noted.write_text("zippy\n")
    assert main(["config", "check"]) == 0
    path.write_text(path.read_text().replace("zippy", "zappy"))
    capsys.readouterr()
    assert main(["config", "check"]) == 2
    assert 'node = "zappy": this node is "zippy", by its own state' in capsys.readouterr().out
