"""What `config check` says of values that break no rule, and can't work or are doubtful."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.cli.main import main
from standfast.config.advice import in_the_clear
from standfast.config.load import load
from standfast.config.nomad import NomadAccess
from standfast.config.problems import dotted
from standfast.doctor import node_checks
from tests.support.terminal import write_config

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[nodes.c1]", '[nfs]\noptions = "rw,syncc"\n[nodes.c1]', "did you mean sync?"),
        ("[nodes.c1]", '[nfs]\noptions = "rw,fsid=0"\n[nodes.c1]', "leave it out"),
        ("192.168.1.3", "127.0.0.1", "nodes.c1.address"),
        ("192.168.1.3", "localhost", "nodes.c1.address"),
        ("[nodes.c1]", '[nfs]\noptions = "rw,20"\n[nodes.c1]', '"20" is no export option'),
        ("[nodes.c1]", '[nfs]\noptions = "squash_uids=0-9,20"\n[nodes.c1]', "no export option"),
        *(
            ("192.168.1.3", loopback, "nodes.c1.address")
            for loopback in (
                "::1",
                "::ffff:127.0.0.1",
                "::ffff:7f00:2",
                "::ffff:0.0.0.0",
                "0x7f000001",
                "127.0x1",
                "0x0",
                "ip6-localhost",
                "ip6-loopback",
                "Localhost.localdomain.",
                "localhost6.localdomain6",
                "c1.localhost",
            )
        ),
        ("[consul]", '[consul]\ntoken_file = "/nowhere/token"', "consul.token_file"),
        ("[consul]", '[consul]\nca_cert = "/"', "consul.ca_cert"),
        ("[consul]", '[nomad]\ntoken_file = "/nowhere/token"\n[consul]', "nomad.token_file"),
    ],
)
def test_config_check_finds_what_breaks_no_rule_and_can_not_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    old: str,
    new: str,
    told: str,
) -> None:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path / "etc"))
    path = write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))
    load(path)  # no agent is kept from its start
    assert main(["config", "check"]) == 2
    out = capsys.readouterr().out
    assert told in out and "is a storage node" not in out, out


def test_config_check_of_a_file_does_not_look_for_the_files_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another host's."""
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path / "etc"))
    path = write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])
    path.write_text(path.read_text().replace("[consul]", '[consul]\ntoken_file = "/nowhere/t"'))
    assert main(["config", "check", str(path)]) == 0


@pytest.mark.parametrize(
    ("host", "like"),
    [
        ("zipy", "zippy"),
        ("Zippy", "zippy"),
        ("C1", "c1.lan"),
        ("laptop", ""),
        ("c2", ""),
    ],
)
def test_config_check_warns_a_host_whose_name_is_much_like_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, host: str, like: str
) -> None:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path / "etc"))
    path = write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])
    text = path.read_text().replace('node = "zippy"', "")
    path.write_text(text.replace("[nodes.c1]", '[nodes."c1.lan"]'))
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert main(["config", "check", "--json"]) == 0
    [file] = json.loads(capsys.readouterr().out)["files"]
    assert (file["node"], file["storage_node"]) == (host, False)
    told = [word["way_out"] for word in file["warnings"] if word["key"] == "node"]
    way_out = f'if it is that node, rename [{dotted("nodes", like)}], or set node = "{like}"'
    assert told == ([way_out] if like else [])


@pytest.mark.parametrize(
    ("option", "path"), [("mp=", "/"), ("mountpoint=", "/nowhere"), ("mp=", "/etc"), ("mp", "")]
)
def test_config_check_warns_of_a_mount_point_that_is_none_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, option: str, path: str
) -> None:
    monkeypatch.setenv("STANDFAST_CONFIG_DIR", str(tmp_path / "etc"))
    file = write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])
    table = f'[nfs]\noptions = "rw,{option}{path}"\n[nodes.c1]'
    file.write_text(file.read_text().replace("[nodes.c1]", table))
    assert main(["config", "check"]) == 0
    told = "mountd would export nothing" in capsys.readouterr().out
    assert told is (path in ("/nowhere", "/etc"))


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ('[consul]\ntoken_file = "T"\naddresses = ["127.0.0.1:1", "192.168.1.9:8500"]', "consul"),
        ('[consul]\ntoken_file = "T"\naddresses = ["http://nas:8500"]\nca_cert = "T"', "consul"),
        ('[consul]\ntoken_file = "T"\naddresses = ["https://nas:8501"]', None),
        ('[consul]\ntoken_file = "T"\naddresses = ["nas:8501"]\nca_cert = "T"', None),
        ('[consul]\ntoken_file = "T"\naddresses = ["localhost:8500", "[::1]:8500"]', None),
        ('[consul]\naddresses = ["192.168.1.9:8500"]', None),
        ('[consul]\n[nomad]\ntoken_file = "T"\naddress = "192.168.1.9:4646"', "nomad"),
        ('[consul]\n[nomad]\ntoken_file = "T"\naddress = "127.0.0.1:4646"', None),
    ],
)
@pytest.mark.usefixtures("demo_parts")
def test_a_token_that_others_could_read_on_its_way_is_warned_of(
    tmp_path: Path, capsys: Captured, table: str, key: str | None
) -> None:
    path = write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])
    before = path.read_text()
    assert '[consul]\naddresses = ["127.0.0.1:1"]' in before
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o600)
    table = table.replace('"T"', f'"{tmp_path}/token"')
    path.write_text(before.replace('[consul]\naddresses = ["127.0.0.1:1"]', table))
    problems = list(in_the_clear(load(path), {}))
    assert [problem.key.partition(".")[0] for problem in problems] == ([key] if key else [])
    found = [finding for finding in node_checks.look(load(path)) if finding.check == "token"]
    assert [finding.ok for finding in found] == ([False] if key else [])
    assert main(["config", "check", str(path)]) == 0
    assert ("everybody on the way" in capsys.readouterr().out) is (key is not None)


def test_tokens_and_addresses_of_the_environment_count_where_the_file_says_nothing(
    tmp_path: Path,
) -> None:
    config = load(write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"]))
    config = replace(
        config, consul=replace(config.consul, addresses=()), nomad=NomadAccess(enabled=True)
    )
    told = {"CONSUL_HTTP_ADDR": "http://nas:8500", "NOMAD_ADDR": "http://nas:4646"}
    assert list(in_the_clear(config, told)) == []
    tokens = {"CONSUL_HTTP_TOKEN": "x", "NOMAD_TOKEN": "y"}
    assert len(list(in_the_clear(config, told | tokens))) == 2
    assert list(in_the_clear(config, tokens)) == []
