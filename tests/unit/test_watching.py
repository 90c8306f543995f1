"""`status --watch`: again and again, whatever happens to the agent meanwhile."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from standfast.agent.document import with_notes
from standfast.cli.parser import build
from standfast.config.model import Config
from standfast.errors import Refused, StandfastError, TimedOut
from standfast.reasons import Reason
from standfast.replication.state import StandbyState
from standfast.status.document import Failover, FromConsul, Standby, Status
from standfast.status.text import render
from standfast.status.watching import Watch, Watched
from standfast.system.clock import monotonic
from tests.support.configs import config_in
from tests.unit.terminals import TerminalOutput

SEEN = Status(
    volume="data-services",
    node="n1",
    role="primary",
    failover=Failover(True, None, "n2 would lose 30 s"),
    consul=FromConsul(
        epoch=4,
        holder="n1",
        state="serving",
        last_heartbeat_seen_s=1.0,
        standbys=(Standby("n2", age_s=30.0, snapshot="services@x", candidate=True),),
    ),
    serving="n1",
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_in(tmp_path)


def looks(*answers: Status | StandfastError) -> Any:
    """What is fetched, one after the other; then ^C."""
    left = iter(answers)

    def fetch() -> Status:
        answer = next(left, None)
        if answer is None:
            raise KeyboardInterrupt
        if isinstance(answer, StandfastError):
            raise answer
        return answer

    return fetch


def watched(config: Config, out: io.StringIO, *answers: Any, as_json: bool = False) -> str:
    with pytest.raises(KeyboardInterrupt):
        Watch([Watched(config.volume, looks(*answers))], out, 0.001, as_json).run()
    return out.getvalue()


def test_a_terminal_is_drawn_in_place_and_left_clean(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "standfast.status.watching.shutil.get_terminal_size", lambda: os.terminal_size((30, 4))
    )
    text = watched(config, TerminalOutput(), SEEN, SEEN)
    frames = text.split("\033[H")[1:]
    assert len(frames) == 2
    for frame in frames:
        lines = frame.removesuffix("\033[J").splitlines()
        assert len(lines) == 3 and frame.endswith("\n\033[J")
        assert all(line.endswith("\033[K") and len(line) <= 29 + 3 for line in lines)
        assert lines[2] == "data-services: n1 is primary,\033[K"  # more of it doesn't fit


def test_elsewhere_blocks_follow_each_other_without_control_characters(config: Config) -> None:
    text = watched(config, io.StringIO(), SEEN, SEEN)
    assert "\033" not in text
    assert text.count("data-services: n1 is primary, epoch 4") == 2
    assert text.count(" UTC, every 0.001 s\n") == 2


def test_an_agent_that_is_away_leaves_the_last_look_with_growing_ages(config: Config) -> None:
    out = io.StringIO()
    watch = Watch([Watched(config.volume, looks(SEEN, TimedOut("no answer"), SEEN))], out, 1.0)
    watch.turn()
    watch.volumes[0].seen_at = monotonic() - 100.0
    out.truncate(0)
    watch.turn()
    text = out.getvalue()
    assert "NO ANSWER: no answer" in text
    assert "what follows was seen 100 s ago" in text
    assert "n2: 2 min behind" in text
    watch.turn()
    assert "n2: 30 s behind" in out.getvalue()


def test_before_the_first_answer_there_is_only_the_error(config: Config) -> None:
    text = watched(config, io.StringIO(), StandfastError("what is\nthis"))
    assert text.splitlines()[1:3] == ["NO ANSWER: what is", "NO ANSWER: this"]


def test_as_json_each_look_is_one_line(config: Config) -> None:
    gone = Refused(Reason.CONSUL_DENIED, "no")
    lines = watched(config, io.StringIO(), SEEN, gone, as_json=True).splitlines()
    assert [json.loads(line) for line in lines] == [
        json.loads(json.dumps(SEEN.as_json())),
        {"volume": config.volume, "error": "no", "reason": "consul-denied", "exit_code": 1},
    ]


def test_of_several_volumes_each_is_shown_and_one_that_does_not_answer_hides_no_other(
    config: Config,
) -> None:
    both = [
        Watched(config.volume, looks(*[TimedOut("no answer")] * 2)),
        Watched("media", looks(*[replace(SEEN, volume="media")] * 2)),
    ]
    out = io.StringIO()
    Watch(both, out, 1.0).turn()
    text = out.getvalue()
    assert "\nvolume data-services\nNO ANSWER: no answer\n" in text
    assert "\nvolume media\nmedia: n1 is primary, epoch 4" in text
    out = io.StringIO()
    Watch(both, out, 1.0, as_json=True).turn()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["volume"], "error" in line) for line in lines] == [
        ("data-services", True),
        ("media", False),
    ]


@pytest.mark.parametrize(
    ("words", "every_s"), [([], None), (["--watch"], 1.0), (["--watch", "0.5"], 0.5)]
)
def test_the_option_takes_a_number_or_none(words: list[str], every_s: float | None) -> None:
    assert build().parse_args(["status", *words]).watch == every_s


def test_the_text_tells_what_was_verified_and_what_failed() -> None:
    well = StandbyState(
        verified_ok=True, verified_at=1_795_000_000.0, verified_snapshot="s", verified_full=True
    )
    bad = StandbyState(verified_ok=False, verified_at=1_795_000_000.0, verified_snapshot="s")
    failed = StandbyState(
        last_success_at=1.0,
        last_failure_at=2.0,
        last_failure_reason="no-space",
        last_failure="x\ny",
    )
    assert SEEN.consul is not None
    [n2] = SEEN.consul.standbys
    for state, said in (
        (well, "behind (services@x), verified (s, all contents, 2026-11-18 "),
        (bad, ", DIFFERS from this node (s, metadata, 2026-11-18 "),
        (failed, "LAST CYCLE FAILED: no-space: x\n"),
        (StandbyState(needs_full=True), "standfast replicate n2 --full"),
    ):
        told = replace(SEEN.consul, standbys=(with_notes(n2, state),))
        assert said in render(replace(SEEN, consul=told))
    mended = StandbyState(last_success_at=3.0, last_failure_at=2.0, last_failure="x")
    told_mended = with_notes(n2, mended)
    assert (told_mended.verified, told_mended.failure, told_mended.needs_full) == (
        None,
        None,
        False,
    )
