"""`make bench` without measuring: what is kept, what is missed, what is chosen, how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

import benchmarks.__main__ as runner
from benchmarks.figures import Benchmark, Figure, Run, begin, missed, number, put, render, spread

MACHINE = {"cpu": "Z80", "cores": 1, "memory_gib": 8, "kernel": "6.1", "python": "3.11.2"}
RUN = Run(MACHINE, "2026-11-28", "abc")
LATER = Run(MACHINE, "2026-12-24", "def")


def bench(name: str, figures: Sequence[Figure] = (), why_not: str | None = None) -> Benchmark[None]:
    def measure(_: None, rounds: int) -> Sequence[Figure]:
        if not figures:
            raise RuntimeError("it breaks")
        return [*figures, Figure("rounds", "", [rounds])]

    return Benchmark(name, f"About {name}.", nullcontext, measure, 5, 2, (10, 1), lambda: why_not)


QUICK = Figure("an answer", "ms", [30, 10, 20], promise=20, baselines={"nothing": [1, 2, 3]})
SLOW = Figure("an answer", "ms", [30, 10, 21], promise=20)


def test_of_samples_the_median_and_the_spread_are_kept() -> None:
    assert spread([3.0, 1.0, 200.123456]) == {"median": 3.0, "min": 1.0, "max": 200.1, "n": 3}
    assert spread([1.0, 2.0])["median"] == 1.5


def test_a_promise_is_kept_or_missed_by_the_median() -> None:
    document = begin(RUN)
    assert missed(put(document, bench("good"), [QUICK], RUN)) == []
    assert missed(put(document, bench("none"), [Figure("x", "s", [9e9])], RUN)) == []
    assert missed(put(document, bench("bad"), [SLOW], RUN)) == [
        "bad: an answer: 21.0 ms, promised are 20.0 ms"
    ]


def test_what_is_not_measured_again_keeps_its_figures_with_their_date_and_commit() -> None:
    first = put(put(begin(RUN), bench("a"), [QUICK, SLOW], RUN), bench("b"), [QUICK], RUN)
    second = put(begin(LATER, first), bench("b"), [SLOW], LATER)
    assert second["benchmarks"]["a"] == first["benchmarks"]["a"]
    again = second["benchmarks"]["b"]["figures"]["an answer"]
    assert (again["median"], again["date"], again["commit"]) == (21.0, "2026-12-24", "def")
    assert (second["date"], second["commit"]) == ("2026-12-24", "def")
    assert first["benchmarks"]["b"]["figures"]["an answer"]["median"] == 20.0


def test_figures_of_another_machine_do_not_stay() -> None:
    first = put(begin(RUN), bench("a"), [QUICK], RUN)
    other = Run({**MACHINE, "kernel": "6.2"}, "2026-12-24", "def")
    assert begin(other, first)["benchmarks"] == {}


def test_the_page_says_what_the_document_says() -> None:
    document = put(begin(RUN), bench("good"), [QUICK], RUN)
    page = render(put(document, bench("bad"), [SLOW], LATER))
    assert "Z80, 1 cores, 8 GiB of memory, Linux 6.1, Python 3.11.2." in page
    assert "## good\n\nAbout good. (2026-11-28, abc)\n" in page
    assert "| an answer | 20.0 ms | 10.0 to 30.0 | 3 | 20 ms | nothing: 2.00 ms |" in page
    assert "| an answer | 21.0 ms | 10.0 to 30.0 | 3 | 20 ms, **missed** |  |" in page
    assert "About bad. (2026-12-24, def)" in page


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.5, "1.50"), (13.94, "13.9"), (1234.4, "1234")],
)
def test_a_number_has_three_significant_digits_and_no_exponent(amount: float, text: str) -> None:
    assert number(amount) == text


@contextmanager
def ground() -> Iterator[None]:
    yield


# -- the runner ------------------------------------------------------------------------------


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "benchmarks.json"
    monkeypatch.setattr(runner, "DOCUMENT", path)
    monkeypatch.setattr(runner, "this_run", lambda: RUN)
    return path


def benchmarks_are(monkeypatch: pytest.MonkeyPatch, *there: Benchmark[Any]) -> None:
    monkeypatch.setattr(runner, "ALL", there)


def sections(path: Path) -> dict[str, Any]:
    benchmarks: dict[str, Any] = json.loads(path.read_text())["benchmarks"]
    return benchmarks


def test_every_benchmark_has_a_name_of_its_own_and_rounds() -> None:
    names = [benchmark.name for benchmark in runner.ALL]
    assert len(set(names)) == len(names)
    assert all(1 <= benchmark.quick <= benchmark.rounds for benchmark in runner.ALL)
    # An election by Consul's own timing takes a quarter of a minute.
    assert runner.seconds(runner.ALL) <= 40 * 60


def test_a_run_writes_the_document_and_its_page(
    document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks_are(monkeypatch, bench("a", [QUICK]), bench("b", [QUICK]))
    assert runner.main([]) == 0
    assert list(sections(document)) == ["a", "b"]
    page = document.with_suffix(".md").read_text()
    assert page == render(json.loads(document.read_text()))


@pytest.mark.parametrize(
    ("options", "rounds"), [([], 5), (["--quick"], 2), (["--rounds", "3"], 3)], ids=str
)
def test_rounds_are_those_of_the_rule_fewer_or_those_told(
    document: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], rounds: int
) -> None:
    benchmarks_are(monkeypatch, bench("a", [QUICK]))
    assert runner.main(options) == 0
    assert sections(document)["a"]["figures"]["rounds"]["median"] == rounds


def test_only_what_is_named_is_measured_and_replaced(
    document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks_are(monkeypatch, bench("a", [QUICK]), bench("b", [QUICK]))
    assert runner.main([]) == 0
    benchmarks_are(monkeypatch, bench("a", [QUICK]), bench("b", [SLOW]))
    monkeypatch.setattr(runner, "this_run", lambda: LATER)
    assert runner.main(["b"]) == 1
    dates = {
        name: section["figures"]["an answer"]["date"]
        for name, section in sections(document).items()
    }
    assert dates == {"a": RUN.date, "b": LATER.date}


def test_the_document_has_the_benchmarks_that_there_are_in_their_order(
    document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks_are(monkeypatch, bench("gone", [QUICK]), bench("c", [QUICK]))
    assert runner.main([]) == 0
    benchmarks_are(monkeypatch, bench("a", [QUICK]), bench("c", [QUICK]), bench("broken"))
    assert runner.main(["a"]) == 0
    assert list(sections(document)) == ["a", "c"]


def test_a_missed_promise_is_named_and_is_exit_status_1(
    document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmarks_are(monkeypatch, bench("a", [SLOW]))
    assert runner.main([]) == 1
    assert "MISSED: a: an answer: 21.0 ms, promised are 20.0 ms" in capsys.readouterr().err


def test_one_that_breaks_is_named_and_those_on_other_ground_are_measured(
    document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = Benchmark("c", "", ground, lambda _, __: [QUICK], 1, 1, (0, 0))
    benchmarks_are(monkeypatch, bench("a"), bench("b", [QUICK]), elsewhere)
    assert runner.main([]) == 1
    assert list(sections(document)) == ["c"]
    said = capsys.readouterr().err
    assert "it breaks" in said
    assert "a was not measured" in said and "b was not measured" in said


def test_what_can_not_be_measured_here_is_left_out_by_name(
    document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmarks_are(monkeypatch, bench("a", [QUICK]), bench("b", [QUICK], "needs root"))
    assert runner.main([]) == 0
    assert "LEFT OUT: b: needs root" in capsys.readouterr().err
    assert list(sections(document)) == ["a"]
    assert runner.main(["b"]) == 1


def test_a_dry_run_and_json_write_nothing(
    document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmarks_are(monkeypatch, bench("a", [QUICK]), bench("broken"))
    assert runner.main(["--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["a: About a. Rounds: 5, 15 s.", "broken: About broken. Rounds: 5, 15 s."]
    assert runner.main(["a", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["machine"] == MACHINE and list(printed["benchmarks"]) == ["a"]
    assert not document.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["guard", "gaurd"], "no benchmark is called gaurd; there are: guard, scrape, "),
        (["--rounds", "0"], "--rounds 0: at least one is needed"),
    ],
    ids=["name", "rounds"],
)
def test_what_is_asked_wrongly_is_refused_with_what_there_is(
    document: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        runner.main(words)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert not document.exists()
