"""What `config check` says of values that break no rule, and can't work or are doubtful."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from standfast.cli.main import main
from standfast.config.load import load
from standfast.config.problems import dotted
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
    told = [word["way_out"] for word in file["warnings"]]
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
