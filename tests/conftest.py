"""What holds for every test: its group, its time-out, and the one summary at the end.

`make test`, `make lab`, `make kernel-lab` and `make torture` choose tests by marker; nothing is
chosen here.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from standfast.assembly.parts import Parts, use
from standfast.demo.parts import DemoParts
from standfast.system import environment
from tests.support import examples, figures, pace

TIMEOUT_S = 120.0
"""For one test on a quiet machine, where the test itself names no other time-out."""
MEASURED = "measured"
examples.load_profile()
# A run in the background (`make test &`) ignores it, and every program that it starts would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A developer's own Consul and Nomad are nobody's business here.
environment.take()
environment.TAKEN.clear()
# Who came by ssh with a key of no node hears less, and a developer may have come by ssh.
os.environ.pop("SSH_CONNECTION", None)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests run one after the other on one worker; time-outs fit the machine.

    The lab's smoke test begins first: it mostly waits, and is the longest.
    """
    items.sort(key=lambda item: item.get_closest_marker("smoke") is None)
    slow = pace.factor()
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        named = item.get_closest_marker("timeout")
        seconds = named.args[0] if named else TIMEOUT_S
        if item.get_closest_marker("hypothesis"):
            seconds *= examples.times()
        item.add_marker(pytest.mark.timeout(seconds * slow), append=False)


@pytest.fixture
def demo_parts() -> Iterator[None]:
    """This process's parts are the demo's: plain directories, and nothing that needs root."""
    use(DemoParts())
    yield
    use(Parts())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """What a test measured travels with its report, from a worker of xdist, too."""
    report = yield
    report.user_properties.extend((MEASURED, line) for line in figures.taken())
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was left out and why, and what was measured."""
    if hasattr(terminalreporter.config, "workerinput"):
        return  # the run's own process tells it, for all workers of xdist
    left_out = _left_out(terminalreporter.stats.get("skipped", []))
    measured = [
        line
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, line in getattr(report, "user_properties", ())
        if name == MEASURED
    ]
    for title, lines in (("LEFT OUT", left_out), (MEASURED, measured)):
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(line)
    # The tier's last line names what was left out in all of its parts (tests/tools/suite).
    if told := os.environ.get("STANDFAST_LEFT_OUT"):
        with Path(told).open("a") as file:
            file.writelines(f"{line}\n" for line in left_out)


def _left_out(skipped: list[Any]) -> list[str]:
    """One line for each reason: how many tests, and where."""
    files: dict[str, list[str]] = defaultdict(list)
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        files[reason.removeprefix("Skipped: ")].append(report.nodeid.partition("::")[0])
    return [
        f"{len(places)} test{'s'[: len(places) > 1]} of {', '.join(sorted(set(places)))}: {reason}"
        for reason, places in sorted(files.items())
    ]
