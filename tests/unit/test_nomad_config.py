"""[nomad]: without the table Nomad is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from standfast.config.example import example
from standfast.config.load import load, load_all
from standfast.config.problems import InvalidConfig

PLAIN = """
cluster = "alo"
node = "zippy"
[nodes.zippy]
address = "192.168.1.2"
"""


def write(directory: Path, more: str, volume: str = "data-services") -> Path:
    file = directory / f"{volume}.toml"
    file.write_text(PLAIN + more)
    return file


def test_without_the_table_nomad_is_left_alone(tmp_path: Path) -> None:
    assert not load(write(tmp_path, "")).nomad.enabled


def test_an_empty_table_is_enough_to_follow_the_role(tmp_path: Path) -> None:
    nomad = load(write(tmp_path, "[nomad]\n")).nomad

    assert (nomad.enabled, nomad.meta_key) == (True, "storage_role")
    assert (nomad.address, nomad.namespace, nomad.on_remount) == ("", "*", "restart")


def test_the_example_leaves_nomad_alone_until_its_table_is_put_in(tmp_path: Path) -> None:
    file = tmp_path / "v.toml"
    file.write_text(example("v").replace("# [nomad]", "[nomad]").replace("# meta_", "meta_"))
    assert load(file, node="zippy").nomad.enabled
    file.write_text(example("v"))
    assert not load(file, node="zippy").nomad.enabled


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('address = "nomad"', "nomad.address.*must be HOST:PORT"),
        ('address = "unix:///run/nomad.sock"', "nomad.address.*must be HOST:PORT"),
        ('namespace = "a b"', r"nomad.namespace.*or is \*"),
        ('on_remount = "reboot"', 'nomad.on_remount.*one of "restart", "signal", "none"'),
        ('client_cert = "/c"', "nomad.client_cert.*no use without nomad.client_key"),
        ('client_key = "/c"', "nomad.client_key.*no use without nomad.client_cert"),
        ('token = "s.ecret"', "nomad.token.*unknown key; did you mean nomad.token_file"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        load(write(tmp_path, f"[nomad]\n{line}\n"))


def test_two_volumes_never_share_a_meta(tmp_path: Path) -> None:
    paths = """
[paths]
live = "/persist/media"
standby = "/persist/media-standby"
bind = "/data/media"
"""
    write(tmp_path, "[nomad]\n")
    write(tmp_path, f'[nomad]\nmeta_key = "media_role"\n{paths}', "media")
    environ = {"STANDFAST_CONFIG_DIR": str(tmp_path)}
    assert len(load_all(environ=environ)) == 2

    write(tmp_path, f"[nomad]\n{paths}", "media")
    with pytest.raises(InvalidConfig, match='meta_key = "storage_role": is also the node meta of'):
        load_all(environ=environ)
