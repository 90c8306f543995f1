"""The demo's cluster for tests, at the pace of the machine.

The demo's leases are of 2 s, so that nobody waits long for a failover. On a machine that is too
busy for them it ends in order, and says so; the tests of what it does stretch its times instead.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pkgutil import resolve_name

import pytest
from msgspec.structs import asdict, replace

from standfast.config.model import FAST_PROFILE
from standfast.demo.cluster import GOSSIP_S, Cluster
from standfast.demo.screen import Screen
from standfast.demo.story import STEP_S
from standfast.system.clock import monotonic
from tests.support.pace import factor

LEASE_TIMES = ("heartbeat", "request_timeout", "length", "fence", "wait")


def stretched(by: float) -> Mapping[str, object]:
    """Where the demo's times stand, and what they are on a machine that is slower by this."""
    told = asdict(FAST_PROFILE)
    return {
        "standfast.demo.nodes.FAST_PROFILE": replace(
            FAST_PROFILE, **{name: told[name] * by for name in LEASE_TIMES}
        ),
        "standfast.demo.cluster.GOSSIP_S": GOSSIP_S * by,
        "standfast.demo.story.STEP_S": STEP_S * by,
        "standfast.demo.stay.session.STEP_S": STEP_S * by,
    }


def needed() -> float:
    """By how much to stretch here: as they are, the times do for a machine of half the speed."""
    return max(1.0, factor() / 2)


def keep_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stretched(needed()).items():
        monkeypatch.setattr(name, value)


def quiet_cluster() -> Cluster:
    """Nothing of it is shown."""
    started = monotonic()
    return Cluster(Screen(io.StringIO(), started), started)


@contextlib.contextmanager
def scratch_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the demo makes its directory; afterwards no process has anything to do with it."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    base = Path(tempfile.mkdtemp(prefix="sf-"))  # a socket's path has to be short
    monkeypatch.setenv("TMPDIR", str(base))
    monkeypatch.setattr(tempfile, "tempdir", None)
    keep_pace(monkeypatch)
    try:
        yield base
        assert processes_of(base) == []
        assert list(base.iterdir()) == []
    finally:
        shutil.rmtree(base)


def processes_of(base: Path) -> list[str]:
    """Command lines of living processes whose environment names `base` as configuration."""
    command_lines = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environ = (path / "environ").read_bytes()
            dead = (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if f"STANDFAST_CONFIG_DIR={base}/".encode() in environ and not dead:
            command_lines.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return command_lines


def program(*arguments: str) -> list[str]:
    """The command line of `standfast demo` at the pace of this machine."""
    return [sys.executable, "-m", "tests.contract.demo_scene", str(needed()), *arguments]


UNPROMOTED = "--unpromoted"
"""With `--stay`: the prompt comes as soon as the agents run."""


def main(by: float, *arguments: str) -> int:
    """What `program` runs."""
    from standfast.cli.main import main as standfast

    changes = dict(stretched(by))
    if UNPROMOTED in arguments:
        changes["standfast.demo.stay.session.first_promotion"] = lambda made, _: made.start()
        changes["standfast.demo.stay.session.first_lines"] = lambda _: None
    for name, value in changes.items():
        module, _, variable = name.rpartition(".")
        setattr(resolve_name(module), variable, value)
    return standfast(["demo", *(word for word in arguments if word != UNPROMOTED)])


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), *sys.argv[2:]))
