"""Whose a file is that root acts by: as sshd's StrictModes, over every link and up to the root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from standfast.config import trust
from standfast.config.fields import TLS_FILES
from standfast.config.load import load, load_all, load_volume
from standfast.config.trust import untrusted
from standfast.errors import ConfigError
from tests.support.examples import examples
from tests.support.terminal import write_config

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to somebody else")
OURS = (0, os.geteuid())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "standfast" / "a.toml"
    path.parent.mkdir(parents=True)
    path.write_text("")
    for place in (tmp_path / "etc", path.parent):
        place.chmod(0o755)
    path.chmod(0o644)
    return path


def through_a_link(path: Path) -> Path:
    """The same file by a directory that is a link, itself in a directory that is one."""
    root = path.parents[2]
    (root / "links").mkdir(mode=0o755)
    (root / "links" / "etc").symlink_to("../etc")
    (root / "short").symlink_to(root / "links" / "etc" / "standfast")
    return root / "short" / path.name


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "the file": (lambda path: path.chmod(0o664), "a.toml can be written by others"),
    "its directory": (lambda path: path.parent.chmod(0o777), "chmod go-w"),
    "a directory above": (lambda path: path.parents[1].chmod(0o775), "chmod go-w"),
}


@pytest.mark.parametrize("what", SPOILED)
@pytest.mark.parametrize("way", [lambda path: path, through_a_link], ids=["straight", "by links"])
def test_whoever_may_write_on_the_way_is_found(
    file: Path, what: str, way: Callable[[Path], Path]
) -> None:
    path = way(file)
    assert untrusted(path, OURS) is None
    spoil, said = SPOILED[what]
    spoil(file)
    told = untrusted(path, OURS)
    assert told is not None and said in told


def test_a_directory_that_a_link_on_the_way_lies_in_counts(file: Path) -> None:
    path = through_a_link(file)
    (file.parents[2] / "links").chmod(0o777)
    told = untrusted(path, OURS)
    assert told is not None and f"{file.parents[2]}/links can be written" in told


def test_in_a_sticky_directory_nobody_replaces_what_is_not_theirs(file: Path) -> None:
    file.parent.chmod(0o1777)
    assert untrusted(file, OURS) is None


@AS_ROOT
@pytest.mark.parametrize("which", [0, 1, 2])
def test_another_owner_is_found(file: Path, which: int) -> None:
    place = (file, file.parent, file.parents[1])[which]
    os.chown(place, 1234, 0)
    told = untrusted(file, OURS)
    assert told == f"{place} belongs to uid 1234, not to root: chown -h root {place}"


@AS_ROOT
def test_a_link_of_another_owner_is_found(file: Path) -> None:
    path = file.with_name("b.toml")
    path.symlink_to(file)
    os.lchown(path, 1234, 0)
    told = untrusted(path, OURS)
    assert told is not None and "b.toml belongs to uid 1234" in told


def test_links_in_a_circle_are_an_error(file: Path) -> None:
    (file.parent / "round").symlink_to("round")
    with pytest.raises(OSError, match="too many"):
        untrusted(file.parent / "round", OURS)


@examples(150)
@given(st.lists(st.sampled_from(["a", "b", ".", "..", "link", "up", "", "x\n", "é"]), max_size=8))
def test_whatever_the_path_it_ends_where_the_kernel_ends(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    root = tmp_path_factory.getbasetemp() / "paths"
    (root / "a" / "b").mkdir(parents=True, exist_ok=True)
    for name, target in (("a/link", "../a/b"), ("a/b/up", ".."), ("b", str(root / "a"))):
        if not os.path.lexists(root / name):
            (root / name).symlink_to(target)
    path = Path(f"{root}/{'/'.join(parts)}")
    try:
        ends = [place for place in trust._on_the_way_to(path) if place.lstat()]
    except OSError:
        assert not path.exists()
        return
    real = Path(os.path.realpath(path))
    assert {real, *real.parents} <= set(ends)


# The configuration


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"])


@AS_ROOT
def test_root_acts_by_no_configuration_that_others_may_write(written: Path) -> None:
    environ = {"STANDFAST_CONFIG_DIR": str(written.parent)}
    load_volume(None, environ=environ)
    written.parent.chmod(0o775)
    for read in (lambda: load_volume(None, environ=environ), lambda: load_all(environ=environ)):
        with pytest.raises(ConfigError, match=rf"root would act by.*chmod go-w {written.parent}$"):
            read()
    load(written, acted_by=False)


@AS_ROOT
@pytest.mark.parametrize(
    "key",
    [
        "consul.token_file",
        "nomad.token_file",
        *(f"{table}.{name}" for table in ("consul", "nomad") for name in TLS_FILES),
        "replication.ssh_key",
        "replication.command",
    ],
)
def test_what_it_names_has_to_be_of_root_too(written: Path, tmp_path: Path, key: str) -> None:
    named = tmp_path / "named"
    named.write_text("x")
    named.chmod(0o600)
    config = load(written)
    replication = replace(config.replication, ssh_key=tmp_path / "none", command=())
    config = replace(config, replication=replication)
    table, _, name = key.partition(".")
    given = (str(named), "{node}") if name == "command" else named
    config = replace(config, **{table: replace(getattr(config, table), **{name: given})})
    assert list(trust.mistrusted(config)) == []
    os.chown(named, 1234, 0)
    if table in ("consul", "nomad"):  # of the agent that is asked, which has a user of its own
        assert list(trust.mistrusted(config)) == []
    else:
        [problem] = trust.mistrusted(config)
        assert (problem.key, problem.way_out) == (key, f"chown -h root {named}")
    os.chown(named, 0, 0)
    named.chmod(0o660)
    [problem] = trust.mistrusted(config)
    assert (problem.key, problem.way_out) == (key, f"chmod go-w {named}")


def test_what_a_user_runs_is_the_business_of_that_user(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    written.parent.chmod(0o777)
    load(written)
