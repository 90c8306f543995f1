"""Programs of the operator's own: who is run, who may say no, who is waited for."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from standfast.config.model import Config, Hooks
from standfast.errors import Refused
from standfast.events import hooks
from standfast.events.events import Event, Kind
from standfast.events.hooks import Later, Occasion
from standfast.reasons import Reason
from standfast.system.clock import monotonic
from tests.support.configs import config_in
from tests.support.examples import examples
from tests.support.pace import patient
from tests.support.scripts import script

Put = Callable[..., Path]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "hooks.d").mkdir(mode=0o755)
    return replace(config_in(tmp_path), hooks=Hooks(dir=tmp_path / "hooks.d", timeout=30.0))


@pytest.fixture
def put(config: Config) -> Put:
    def make(name: str, body: str = "", *, mode: int = 0o755) -> Path:
        path = script(config.hooks.dir / name, body)
        path.chmod(mode)
        return path

    return make


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    events: list[Event] = []
    monkeypatch.setattr(hooks, "tell", events.append)
    return events


def test_they_run_in_the_order_of_their_names_and_know_what_happened(
    config: Config, put: Put, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name in ("20-b", "10-a"):
        put(f"post-promote/{name}", f'echo "{name} $1 $STANDFAST_VOLUME $STANDFAST_EPOCH" >> {out}')
    put("post-demote/10-other", f"echo other >> {out}")
    hooks.announce(config, Occasion.POST_PROMOTE, lambda: {"epoch": 5, "to": None})
    assert out.read_text().splitlines() == [
        "10-a post-promote data-services 5",
        "20-b post-promote data-services 5",
    ]


def test_the_environment_has_what_is_known_and_nothing_else(config: Config) -> None:
    facts = {"reason": Reason.TAKEOVER, "lost_seconds": 30.0, "to": None}
    assert hooks.environment(config, Occasion.PRE_PROMOTE, facts) == {
        "STANDFAST_EVENT": "pre-promote",
        "STANDFAST_VOLUME": "data-services",
        "STANDFAST_NODE": "n1",
        "STANDFAST_PATH": str(config.paths.bind),
        "STANDFAST_REASON": "takeover",
        "STANDFAST_LOST_SECONDS": "30",
    }


def test_only_75_is_a_veto_and_it_says_why(config: Config, put: Put, told: list[Event]) -> None:
    put("pre-promote/10-disk", "echo the disk is failing; exit 75")
    with pytest.raises(Refused, match=r"10-disk is against it.*the disk is failing") as refused:
        hooks.ask(config, dict)
    assert refused.value.reason is Reason.HOOK_VETOED


BROKEN = {
    "another status": ("exit 1", "ended with status 1"),
    "a crash": ("kill -9 $$", "killed by signal 9"),
    "a hang": ("sleep 60", "didn't end in time"),
    "a missing interpreter": (None, "can't be started"),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("strict", [False, True])
def test_a_broken_one_is_told_and_a_veto_only_where_that_was_asked_for(
    config: Config, put: Put, told: list[Event], how: str, strict: bool
) -> None:
    body, said = BROKEN[how]
    path = put("pre-promote/10-x", body or "")
    if body is None:
        path.write_text("#!/nowhere/at/all\n")
    failure = "veto" if strict else "go-on"
    timeout = 0.5 if how == "a hang" else 30.0
    config = replace(
        config, hooks=replace(config.hooks, pre_promote_failure=failure, timeout=timeout)
    )
    if strict:
        with pytest.raises(Refused, match=said):
            hooks.ask(config, dict)
        return
    hooks.ask(config, dict)
    [event] = told
    assert event.kind is Kind.HOOK_FAILED and said in event.sentence
    assert event.fields()["STANDFAST_HOOK"] == "pre-promote/10-x"


def test_the_hooks_of_an_event_share_one_deadline(
    config: Config, put: Put, told: list[Event], tmp_path: Path
) -> None:
    """The first one uses it up: no other one begins."""
    short = replace(config, hooks=replace(config.hooks, timeout=patient(0.4)))
    began = tmp_path / "began"
    for name in ("10-a", "20-b", "30-c"):
        put(f"post-promote/{name}", f"echo {name} >> {began}; exec sleep 600")
    hooks.announce(short, Occasion.POST_PROMOTE, dict)
    assert began.read_text().split() == ["10-a"]
    assert [event.kind for event in told] == [Kind.HOOK_FAILED] * 3
    assert all("didn't end in time" in event.sentence for event in told)


def test_elsewhere_75_is_no_veto(config: Config, put: Put, told: list[Event]) -> None:
    put("pre-demote/10-x", "exit 75")
    hooks.announce(config, Occasion.PRE_DEMOTE, dict)
    assert [event.kind for event in told] == [Kind.HOOK_FAILED]
    assert "ended with status 75" in told[0].sentence


UNSAFE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file that all may write": (lambda path: path.chmod(0o757), "chmod go-w"),
    "a directory that the group may write": (lambda path: path.parent.chmod(0o775), "chmod go-w"),
    "the directory of all": (lambda path: path.parent.parent.chmod(0o777), "chmod go-w"),
    "no x bit": (lambda path: path.chmod(0o644), "not executable"),
    "a directory": (lambda path: path.rename(path.parent / "x~").with_name("10-x").mkdir(), "file"),
}


@pytest.mark.parametrize("what", UNSAFE)
def test_what_somebody_else_could_have_written_is_not_run(
    config: Config, put: Put, told: list[Event], tmp_path: Path, what: str
) -> None:
    spoil, said = UNSAFE[what]
    path = put("post-promote/10-x", f"touch {tmp_path}/ran")
    spoil(path)
    hooks.announce(config, Occasion.POST_PROMOTE, dict)
    assert not (tmp_path / "ran").exists()
    assert said in told[0].sentence and "not run" in told[0].sentence


def test_a_link_counts_with_the_place_that_it_leads_to(
    config: Config, put: Put, told: list[Event], tmp_path: Path
) -> None:
    real = put("post-promote/10-x", "true")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    real.rename(elsewhere / "x")
    real.symlink_to(elsewhere / "x")
    assert [program.wrong for program in hooks.programs(config, Occasion.POST_PROMOTE)] == [None]
    elsewhere.chmod(0o777)
    [refused] = hooks.programs(config, Occasion.POST_PROMOTE)
    assert refused.wrong is not None and str(elsewhere) in refused.wrong


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to somebody else")
def test_one_of_another_owner_is_not_run(config: Config, put: Put) -> None:
    os.chown(put("post-promote/10-x"), 1234, 0)
    [program] = hooks.programs(config, Occasion.POST_PROMOTE)
    assert program.wrong is not None and "belongs to uid 1234" in program.wrong


@pytest.mark.parametrize("name", ["10-x~", "10-x.bak", "10-x.dpkg-old", "10-x.rpmnew", ".10-x.swp"])
def test_what_editors_and_packages_leave_does_not_count(
    config: Config, put: Put, name: str
) -> None:
    put(f"post-promote/{name}", "exit 1")
    assert hooks.programs(config, Occasion.POST_PROMOTE) == []


FILE_NAMES = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.sampled_from([b"10-x", b"10-x.sh", b"x.bak.y", b"dpkg-new", b"_"]),
    st.tuples(st.binary(max_size=5), st.sampled_from([b"~", b".bak", b".dpkg-old", b"\n"])).map(
        b"".join
    ),
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b"", b".", b".."))


@examples(150)
@given(st.sets(FILE_NAMES, max_size=5))
def test_of_names_of_any_bytes_only_plain_ones_are_programs(
    tmp_path_factory: pytest.TempPathFactory, names: set[bytes]
) -> None:
    root = tmp_path_factory.mktemp("names")
    config = replace(config_in(root), hooks=Hooks(dir=root / "hooks.d"))
    directory = root / "hooks.d" / Occasion.POST_DEMOTE
    directory.mkdir(parents=True, mode=0o755)
    for name in names:
        script(directory / os.fsdecode(name), "true")
    found = [hook.path.name for hook in hooks.programs(config, Occasion.POST_DEMOTE)]
    assert found == sorted(found) and {os.fsencode(name) for name in found} <= names
    for text in found:
        assert text.isascii() and text.isprintable() and not set(text) & set(" /~$`'\"\\")
        assert not text.endswith((".bak", ".orig", ".rej", ".swp", ".tmp"))
    left_out = {os.fsdecode(name) for name in names} - set(found)
    assert not any(re.fullmatch("[0-9]+-[a-z]+", text) for text in left_out)
    assert hooks.strangers(config) == []


def test_a_directory_of_no_event_is_named(config: Config, put: Put) -> None:
    put("pre-promote/10-x")
    put("pre-promotion/10-x")
    assert hooks.strangers(config) == ["pre-promotion"]


def test_after_the_fact_nobody_waits(config: Config, put: Put, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    put("post-promote/10-x", f"cat {gate} > {tmp_path}/first")
    put("post-demote/10-x", f"cp {tmp_path}/first {tmp_path}/second")
    later = Later(config)
    began = monotonic()
    later.add(Occasion.POST_PROMOTE, {})
    later.add(Occasion.POST_DEMOTE, {})
    assert monotonic() - began < patient(15.0)  # its hooks would take 30 s
    assert not (tmp_path / "second").exists()
    with gate.open("w") as out:
        out.write("go")
    done = threading.Thread(target=later.join, daemon=True)
    done.start()
    done.join(60)
    assert (tmp_path / "second").read_text() == "go"
