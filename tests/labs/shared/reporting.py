"""What pytest says of a lab: one error when it does not come up, the journals when a test fails.

Invariant: an error of a fixture that tests share is the first test's; the others are skipped and
name that one. What the nodes of a lab that did not come up said outlives the run, in a file.

The labs' conftest.py call `register`: their own hooks would not see a session's fixtures.
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.labs.shared.lab import Machines, alive
from tests.support.checkout import CHECKOUT
from tests.support.commands import LabError

JOURNALS = CHECKOUT / ".cache/lab-journals"
WHOLE = 1_000_000
"""Lines: more than a journal has."""
REASON = 400
"""Characters, of several lines if the error has them."""
_first: dict[BaseException, str] = {}
"""Error of a shared fixture -> the test that met it first."""


class NotUp(pytest.fail.Exception):  # type: ignore[name-defined, misc]
    """What tests share on a lab could not be set up: the lab itself, the product on it, or what is
    done to it first. The first line says why."""


def register(config: pytest.Config) -> None:
    """Use these hooks in this run; may be called again."""
    if not config.pluginmanager.has_plugin(__name__):
        config.pluginmanager.register(sys.modules[__name__], __name__)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """What keeps a shared lab from coming up becomes a NotUp; what the fixture made is undone."""
    before = list(alive)
    try:
        return (yield)
    except NotUp:
        raise
    except (Exception, pytest.fail.Exception) as error:
        if fixturedef.scope == "function" or not alive:
            raise
        made = [lab for lab in alive if lab not in before]
        reason = aftermath(made or alive, error)
        for lab in made:
            lab.close()
        # Its traceback is in the file: here the reason comes first.
        raise NotUp(reason, pytrace=False) from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """pytest gives the error of a shared fixture to every test: only the first one keeps it."""
    report = yield
    if not report.failed or call.excinfo is None:
        return report
    error = call.excinfo.value
    if call.when == "setup":
        # From the second test on it is the error itself, as the fixture raised it.
        cause = error.__context__ if isinstance(error, NotUp) and error.__context__ else error
        if isinstance(error, NotUp | LabError):
            _first.setdefault(cause, item.nodeid)
        first = _first.get(cause, item.nodeid)
        if first != item.nodeid:
            reason = f"Skipped: what these tests share could not be set up: see {first}"
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.location[1], reason)
            return report
    if not isinstance(error, NotUp):
        for lab in alive:
            for node in lab:
                report.sections.append((f"journal of {node.name}", node.journal(lines=60)))
    return report


def aftermath(labs: Sequence[Machines[Any]], error: BaseException) -> str:
    """Why the labs did not come up, in one line; below it, where all is that their nodes said."""
    why = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
    reasons = [textwrap.shorten(why, REASON)]
    said = traceback.format_exception(error)
    for node in (node for lab in labs for node in lab):
        if trouble := _told(node.trouble):
            reasons.append(f"{node.name}: {trouble}")
        for source, text in (
            ("console", _told(node.console)),
            ("journal", _told(lambda: node.journal(lines=WHOLE))),  # noqa: B023 (called at once)
        ):
            said.append(f"\n======== {source} of {node.name} ========\n{text}\n")
    reason = "; ".join(reasons)
    JOURNALS.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", prefix=time.strftime("%Y%m%dT%H%M%S-"), suffix=".txt", dir=JOURNALS, delete=False
    ) as file:
        file.writelines([f"{reason}\n\n", *said])
    return f"{reason}\nThe journals and consoles of all nodes are in {Path(file.name)}."


def _told(ask: Callable[[], str]) -> str:
    """What a node says of itself, or why it doesn't."""
    try:
        return ask()
    except Exception as error:
        return f"({type(error).__name__}: {error})"
