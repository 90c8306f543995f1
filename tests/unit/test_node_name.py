"""A node that is renamed in the configuration, or that Consul calls otherwise, is refused before it
takes itself for another."""

from __future__ import annotations

import json
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
from standfast.consul.node_name import misnamed
from standfast.doctor import node_checks
from standfast.lease import process as lease
from standfast.node.own_epoch import OwnEpoch, Stage
from tests.support.configs import config_in
from tests.support.terminal import a_desk, write_config

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


# As Consul calls it


@pytest.mark.parametrize("named", ["zippy.lan", "Zippy", "c1"])
def test_a_name_that_differs_in_anything_is_another(named: str) -> None:
    said = misnamed("zippy", named)
    assert said is not None
    assert named in said and "`node_name`" in said
    assert not node_checks.name("zippy", named).ok


@pytest.mark.parametrize("named", ["zippy", None])
def test_the_same_name_and_one_that_is_not_known_are_no_finding(named: str | None) -> None:
    assert misnamed("zippy", named) is None


def test_config_check_compares_the_name_with_the_consul_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with a_desk(tmp_path, monkeypatch, capsys) as desk:
        assert desk.run("config", "check")[0] == 0
        document = json.loads(desk.run("config", "check", "--json")[1])
        assert document["files"][0]["not_compared"] is None
        path = desk.config.source
        path.write_text(path.read_text().replace("zippy", "Zippy"))
        code, out, _ = desk.run("config", "check")
        assert code == 2
        assert 'node = "Zippy": the Consul agent of this node is called "zippy"' in out
        monkeypatch.setattr("socket.gethostname", lambda: "laptop")
        path.write_text(path.read_text().replace('node = "Zippy"', ""))
        assert desk.run("config", "check")[0] == 0, "nothing in Consul goes by a client's name"


def test_config_check_says_that_it_could_not_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path / "etc"))
    write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])
    assert main(["config", "check"]) == 0
    assert "not compared with this node's name in Consul" in capsys.readouterr().out
    assert main(["config", "check", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "refused" in document["files"][0]["not_compared"]


@pytest.mark.usefixtures("demo_parts")
def test_doctor_compares_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with a_desk(tmp_path, monkeypatch, capsys) as desk:
        assert [(f.check, f.ok) for f in node_checks.look(desk.config)] == [("name", True)]
        [finding] = node_checks.look(replace(desk.config, node="c1"))
        assert (finding.check, finding.ok) == ("name", False)
        desk.consul.stop_agent("zippy")
        [finding] = node_checks.look(desk.config)
        assert not finding.ok and "not compared" in finding.evidence
