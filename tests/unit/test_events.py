"""Events: stable ids, the journal's own protocol, one entry instead of a line."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from standfast.config.model import Hooks
from standfast.errors import Refused
from standfast.events import journal
from standfast.events.events import NOTICE, Event, Kind, happened, tell
from standfast.reasons import Reason
from tests.support import needs
from tests.support.checkout import CHECKOUT
from tests.support.configs import config_in
from tests.support.scripts import script

# An interface: alerts of other people hang on these. Add to it; change nothing.
IDS = {
    "lease-acquired": "757c7abe96dc4d8f834d69e599e8e89f",
    "failover-decided": "baea7a9a74a64d1e8597778a82102646",
    "promoted": "d66514c58b6a4990b8a4ff66c149a93b",
    "serving-again": "f36d35ecb0e845a49a43cf32671d9bab",
    "switchover-begun": "9e308debf318444997f0c595d85744ae",
    "switchover-ended": "901c72f5cf7942d99fa26310ad42db2e",
    "demoted": "8b172cc8a36241e68ce354ac1f6aaf8f",
    "role-change-failed": "60935f7fc1624a5b960c84ab8c68e5bc",
    "lease-lost": "d422630ecfdc459bb7264acf5ffa6b45",
    "surrendered": "84bb068b9c1b479087969e0f802c177b",
    "fence-closed": "c59d7c7124644ed2bd1f38b335120f3a",
    "fence-reopened": "c762f6091ad64191a25402445b20b8d8",
    "promotion-refused": "b66cd79f9b3444ec80f7776346ff17b5",
    "claim-refused": "d89b9104b9504cc990a75c6a854a4612",
    "guard-refused": "33e8f58086134435a20a00c9b8f8f4e3",
    "receive-refused": "158e4892576949938b23e353d38cf0ee",
    "cycle-failed": "75deccc309d8413b82e0aa11f64545b3",
    "hook-failed": "7fab8054c2824531b29fa4a655a9b987",
}
LOST = Event(Kind.LEASE_LOST, "the lease is lost", "data-services", "n1", epoch=4)


class Journal:
    """A journal's socket, and what arrived there, decoded as journald does it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(10)

    def entry(self) -> dict[str, str]:
        return decoded(self._socket.recv(1 << 20))

    def close(self) -> None:
        self._socket.close()
        self.path.unlink()


def decoded(data: bytes) -> dict[str, str]:
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            [size] = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + size], data[8 + size :]
            assert data[:1] == b"\n"
            data = data[1:]
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal")
    monkeypatch.setenv(journal.VARIABLE, str(made.path))
    yield made
    made.close()


def test_no_id_ever_changes() -> None:
    assert {str(kind): kind.message_id for kind in Kind} == IDS
    assert len(set(IDS.values())) == len(IDS)
    assert all(re.fullmatch(r"[0-9a-f]{32}", message_id) for message_id in IDS.values())


def test_an_entry_has_its_fields_and_nothing_that_is_not_known(
    heard: Journal, tmp_path: Path
) -> None:
    event = happened(
        config_in(tmp_path),
        Kind.CYCLE_FAILED,
        "no\nway",
        reason=Reason.NO_SPACE,
        standby="n2",
        STANDFAST_TRIES="3",
    )
    assert journal.deliver(event)
    entry = heard.entry()
    assert entry.pop("SYSLOG_IDENTIFIER")
    assert entry == {
        "MESSAGE": "no\nway",
        "MESSAGE_ID": IDS["cycle-failed"],
        "PRIORITY": "3",
        "STANDFAST_EVENT": "cycle-failed",
        "STANDFAST_VOLUME": "data-services",
        "STANDFAST_NODE": "n1",
        "STANDFAST_REASON": "no-space",
        "STANDFAST_STANDBY": "n2",
        "STANDFAST_TRIES": "3",
    }


@pytest.mark.parametrize("where", ["", "/nowhere/at/all"])
def test_without_a_journal_nothing_is_delivered(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv(journal.VARIABLE, where)
    assert not journal.deliver(LOST)


def test_a_journal_that_does_not_read_is_not_waited_for(heard: Journal) -> None:
    delivered = [journal.deliver(LOST) for _ in range(5000)]
    assert delivered[0] and not delivered[-1]


def test_an_event_is_a_line_of_the_log_with_its_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tell(LOST)
    tell(Event(Kind.PROMOTED, "n1 is primary", "data-services", "n1"))
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "the lease is lost"),
        (NOTICE, "n1 is primary"),
    ]


PROGRAM = """
import logging, os, sys
from standfast.cli.services import set_up_log
from standfast.events.events import Event, Kind, tell
if sys.argv[1] == "journal":
    status = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
set_up_log()
logging.getLogger("x").info("a plain line")
tell(Event(Kind.LEASE_LOST, "the lease is lost", "data-services", "n1", epoch=4))
"""


def said(where: str) -> str:
    """What a program writes to stderr, when that is the journal, or a terminal."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, where], capture_output=True, text=True, check=True
    )
    return done.stderr


def test_where_stderr_is_the_journal_the_entry_takes_the_place_of_the_line(heard: Journal) -> None:
    assert said("journal") == "<6>a plain line\n"
    assert heard.entry()["MESSAGE"] == "the lease is lost"


def test_elsewhere_it_is_a_line_as_well(heard: Journal) -> None:
    assert "ERROR the lease is lost" in said("terminal")
    assert heard.entry()["STANDFAST_EPOCH"] == "4"


def test_an_entry_that_can_not_be_delivered_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(journal.VARIABLE, "/nowhere/at/all")
    assert said("journal").splitlines() == ["<6>a plain line", "<3>the lease is lost"]


def test_settle_waits_until_the_journal_has_read(
    heard: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journal.deliver(LOST)
    pauses = []

    def read_meanwhile(seconds: float) -> None:
        pauses.append(seconds)
        heard.entry()

    monkeypatch.setattr(journal, "sleep", read_meanwhile)
    monkeypatch.setattr(journal, "SETTLE_S", 60.0)
    journal.settle()
    assert len(pauses) == 1


def test_a_refusal_of_the_guard_is_an_entry_with_the_unit_of_the_server(
    heard: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from standfast import guard

    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    guard.announce(config_in(tmp_path), Refused(Reason.LEASE_NOT_HELD, "held by n2"))
    entry = heard.entry()
    assert entry["MESSAGE"] == "refused [lease-not-held]: held by n2"
    assert entry["STANDFAST_REASON"] == "lease-not-held"
    assert entry["OBJECT_SYSTEMD_UNIT"] == "nfs-server.service"


def test_a_failed_cycle_is_an_entry_and_runs_its_hooks(heard: Journal, tmp_path: Path) -> None:
    from standfast.cli import replicate

    told = f'echo "$STANDFAST_STANDBY $STANDFAST_REASON" > {tmp_path}/told'
    script(tmp_path / "hooks.d/failed-cycle/10-x", told)
    config = structs.replace(config_in(tmp_path), hooks=Hooks(dir=tmp_path / "hooks.d"))
    assert not replicate._announce(config, "n2", Refused(Reason.BUSY, "another is at work"))
    assert not replicate._announce(config, "n2", Refused(Reason.NO_SPACE, "full"))
    entry = heard.entry()
    assert (entry["STANDFAST_STANDBY"], entry["STANDFAST_REASON"]) == ("n2", "no-space")
    assert entry["MESSAGE"] == "not replicated to n2: no-space: full"
    assert (tmp_path / "told").read_text() == "n2 no-space\n"


def test_a_failure_that_the_journal_has_is_not_said_on_stderr_too(
    heard: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from standfast.cli import replicate

    monkeypatch.setattr(replicate, "load_volume", lambda _volume: config_in(tmp_path))
    failed = replicate.Outcome("n2", error=Refused(Reason.NO_SPACE, "full"), in_journal=True)
    monkeypatch.setattr(replicate, "_cycles", lambda *_: iter([failed]))
    words = Namespace(
        instance="data-services:n2", standby=None, volume=None, dry_run=False, full=False,
        quiet=True, json=False,
    )  # fmt: skip
    assert replicate.run(words) == 1
    failed = replace(failed, in_journal=False)
    with pytest.raises(Refused, match="full"):
        replicate.run(words)


def test_a_snapshot_that_is_not_taken_in_is_an_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from standfast.replication.receive import receive

    nothing: Any = None  # it is refused before anything is asked
    environ = {"SSH_ORIGINAL_COMMAND": "sh"}
    config = config_in(tmp_path)
    assert receive(config, nothing, nothing, -1, io.StringIO(), environ=environ) == 1
    [event] = [getattr(record, "event", None) for record in caplog.records]
    assert isinstance(event, Event)
    assert (event.kind, event.reason) == (Kind.RECEIVE_REFUSED, "protocol")
    assert event.sentence.startswith("refused: protocol: this key may only run")


PAGE = CHECKOUT / "docs/events.md"


def test_the_page_has_every_event_with_its_id_and_priority() -> None:
    rows = re.findall(r"(?m)^\| `([a-z-]+)` \| `([0-9a-f]{32})` \| (\d) \|", PAGE.read_text())
    assert rows == [(str(kind), kind.message_id, str(kind.priority)) for kind in Kind]


@needs.tool("journalctl", "systemd")
def test_journalctl_explains_every_event(tmp_path: Path) -> None:
    places = [tmp_path / "usr/lib/systemd/catalog", tmp_path / "var/lib/systemd/catalog"]
    for place in places:
        place.mkdir(parents=True)
    shutil.copy(PAGE.parents[1] / "systemd/standfast.catalog", places[0])
    subprocess.run(["journalctl", f"--root={tmp_path}", "--update-catalog"], check=True)
    listing = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--dump-catalog", *IDS.values()],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert listing.count("Defined-By: Standfast") == len(IDS)
    for line in listing.splitlines():
        for field in re.findall(r"@(\w+)@", line):
            assert field in ("STANDFAST_VOLUME", "STANDFAST_NODE"), "not in every entry"
