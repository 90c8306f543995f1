"""What the pages claim exists: tests, links, codes, commands."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from standfast.cli.parser import build
from standfast.reasons import Reason
from tests.support.checkout import CHECKOUT

PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")])
DESIGN = CHECKOUT / "DESIGN.md"
FAILURES = CHECKOUT / "docs/handled-failures.md"
SCENARIOS = 45
SECURITY = CHECKOUT / "docs/security.md"
SENTENCES = 18


def rows() -> list[list[str]]:
    """Cells of each numbered row."""
    lines = FAILURES.read_text().splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if re.match(r"\| \d+ \|", line)
    ]


def named_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_failure_is_there_once_and_says_how_it_is_tested() -> None:
    numbers = [int(row[0]) for row in rows()]
    assert len(numbers) >= SCENARIOS
    # Other rows and other pages speak of a row by its number.
    assert numbers == [*range(1, len(numbers) + 1)], "one is missing, twice, or out of its order"
    for number, failure, outcome, tested in rows():
        assert failure and outcome, number
        assert "`test_" in tested, number


def test_every_test_that_the_page_names_exists_where_it_says() -> None:
    known: dict[str, set[str]] = {}
    places = dict(re.findall(r"(?m)^\| (\w+) \| `(tests/[\w/.]+)` \|", FAILURES.read_text()))
    for number, _, _, tested in rows():
        for place, names in re.findall(r"(\w+): ((?:`test_\w+`(?:, )?)+)", tested):
            path = places[place]
            known.setdefault(path, named_tests(CHECKOUT / path))
            missing = set(re.findall(r"`(test_\w+)`", names)) - known[path]
            assert not missing, f"{number}: {path} has no {missing}"
        named = re.findall(r"`(test_\w+)`", tested)
        placed = re.findall(r"(?:\w+: |, )`(test_\w+)`", tested)
        assert named == placed, f"{number}: a test without its place"


def test_each_line_of_who_can_do_what_is_shown_by_tests() -> None:
    lines = re.findall(r"(?m)^\| (?!can \||---)(.+) \|$", SECURITY.read_text())
    assert len(lines) >= SENTENCES
    known = set().union(*map(named_tests, (CHECKOUT / "tests").rglob("test_*.py")))
    for line in lines:
        _can, _can_not, tests = line.split(" | ")
        named = set(re.findall(r"`(test_\w+)`", tests))
        assert named or tests == "no test", line
        assert not named - known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        aim = page.parent / path if path else page
        assert aim.exists(), target
        if anchor:
            assert anchor in anchors(aim), target


# A changelog speaks of what was there then.
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
TOP = "handlers|tests|tools|systemd|exporters|watches|benchmarks|docs"


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_file_of_the_project_that_a_page_names_is_there(page: Path) -> None:
    # Not what follows a slash or a dot: those are paths of an installation, or of another page.
    named = re.findall(rf"(?<![\w/.-])((?:{TOP})/[\w/@.-]*\w)", page.read_text())
    named += re.findall(r"(?<![\w/.-])((?:[a-z_]+/)+[a-z_]+\.py)\b", page.read_text())
    for name in named:
        places = (CHECKOUT / name, CHECKOUT / "standfast" / name)
        assert any(place.exists() for place in places), name


def test_the_design_is_a_map_and_no_diary() -> None:
    assert len(DESIGN.read_text().splitlines()) <= 200


def rooms() -> dict[str, set[str]]:
    """Of DESIGN's table: each room, and the rooms that it names beside those that all may use."""
    _, _, rest = DESIGN.read_text().partition("### Packages\n")
    lines = re.findall(r"(?m)^\| `(\w+)` \|.*\|([^|]*)\|$", rest.partition("\n### ")[0] + "\n")
    return {room: set(re.findall(r"`(\w+)`", uses)) for room, uses in lines}


def imported_rooms(room: str) -> set[str]:
    """At module level, which is what the layers are about: a `main()` puts real parts together."""
    place = CHECKOUT / "standfast" / room
    used: set[str] = set()
    for file in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("standfast"):
                names = [node.module or ""]
                if node.module == "standfast":
                    names = [f"standfast.{alias.name}" for alias in node.names]
                used |= {name.split(".")[1] for name in names}
    return used - {room, "__version__"}


def test_the_design_has_every_room_once_and_says_what_it_uses() -> None:
    table = rooms()
    there = {
        path.stem for path in (CHECKOUT / "standfast").iterdir() if path.suffix in ("", ".py")
    } - {
        "__init__",
        "__main__",
        "__pycache__",
    }
    assert set(table) == there
    order = list(table)
    for position, room in enumerate(order):
        imports = imported_rooms(room)
        above = imports & set(order[:position])
        assert imports == above, f"{room} is above what it uses: {imports - above}"
        more = imports - set(order[:7]) - table[room]
        assert not more, f"{room} uses {more}, which DESIGN's table doesn't say"


def anchors(page: Path) -> set[str]:
    """As the usual renderers make them of headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_command_of_the_guide_is_one() -> None:
    text = (CHECKOUT / "docs/operators-guide.md").read_text()
    commands = re.findall(r"(?m)^    (standfast .*)$", text)
    commands += re.findall(r"`(standfast [^`]+)`", text)
    assert len(commands) > 20
    for command in commands:
        words = shlex.split(command.split("   ")[0].split(" > ")[0].split(" && ")[0], comments=True)
        build().parse_args(words[1:])


def test_every_code_in_the_tables_of_the_guide_is_a_reason() -> None:
    text = (CHECKOUT / "docs/operators-guide.md").read_text()
    codes = re.findall(r"(?m)^\| ((?:`[a-z]+-[a-z-]+\*?`(?:, )?)+)", text)
    assert len(codes) > 15
    for code in re.findall(r"`([a-z-]+)\*?`", " ".join(codes)):
        assert any(str(reason).startswith(code) for reason in Reason), code


def test_the_lease_process_is_upgraded_before_the_agent() -> None:
    """The new agent's check wants the fence's rules in the form that a new lease process makes."""
    guide = (CHECKOUT / "docs/operators-guide.md").read_text()
    section = guide.partition("## Another version\n")[2].partition("\n## ")[0]
    restarts = [line for line in section.splitlines() if "systemctl restart standfast" in line]
    assert "standfast-lease@" in restarts[0]
    assert "standfast-agent@" in restarts[1]
