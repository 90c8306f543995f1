from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from standfast.config.model import Paths
from standfast.demo.stand_ins.fence import FileFence
from standfast.errors import CommandFailed, Refused, TimedOut
from standfast.fence import choice
from standfast.fence import nftables as fence_module
from standfast.fence.choice import fence_from
from standfast.fence.claims import Claims
from standfast.fence.ipset import parse_members
from standfast.fence.nftables import NftFence, build_script, parse_table, parse_time
from standfast.system.clock import Deadline, monotonic
from tests.support.configs import config_of
from tests.support.fences import claimed
from tests.support.scripts import script as write_script

LISTING = """table inet standfast {
\tset open {
\t\ttype inet_service
\t\tflags timeout
\t\telements = { 2049 timeout 8s432ms expires 1m8s400ms }
\t}

\tchain input {
\t\ttype filter hook input priority filter - 10; policy accept;
\t\tiif "lo" accept
\t\tmeta l4proto { tcp, udp } th dport 2049 th dport != @open drop
\t}

\tchain output {
\t\ttype filter hook output priority filter - 10; policy accept;
\t\toif "lo" accept
\t\tmeta l4proto { tcp, udp } th sport 2049 th sport != @open drop
\t}
}
"""
OF_THE_OLDER_FORM = LISTING[: LISTING.index("\n\tchain output")] + "}\n"


def test_the_listing_of_an_open_port_is_understood() -> None:
    state = parse_table(LISTING, 2049)
    assert state.in_place
    assert state.open_for_s == pytest.approx(68.4)


@pytest.mark.parametrize(
    ("original", "instead"),
    [
        ("th dport != @open drop", "th dport != @open counter accept"),
        ('\t\tiif "lo" accept\n', '\t\tiif "lo" accept\n\t\tip saddr 10.0.0.0/8 accept\n'),
        ("type filter hook input", "type filter hook forward"),
        ("type filter hook output", "type filter hook forward"),
        ("type filter hook output", "type filter hook input"),
        ("th sport != @open drop", "th sport != @open counter accept"),
        ('oif "lo" accept\n', 'oif "lo" accept\n\t\tct state established accept\n'),
        ("dport 2049 th", "dport 2050 th"),
        ("\t\tmeta l4proto { tcp, udp } th dport 2049 th dport != @open drop\n", ""),
        ("table inet standfast {\n", "table inet standfast {\n\tflags dormant\n"),
    ],
)
def test_rules_that_somebody_changed_are_not_in_place(original: str, instead: str) -> None:
    assert original in LISTING
    assert not parse_table(LISTING.replace(original, instead), 2049).in_place


def test_rules_that_let_answers_out_are_not_in_place() -> None:
    """Those of a version before the chain for what goes out."""
    assert not parse_table(OF_THE_OLDER_FORM, 2049).in_place


def test_what_is_put_in_place_is_what_is_looked_for() -> None:
    script = build_script("standfast", 2049)
    lines = re.split(r"(?<=\{) (?=set|chain|type)|; (?!policy)", script)
    assert parse_table("\n".join(lines), 2049).in_place


def test_a_port_opened_by_hand_is_open_for_ever() -> None:
    listing = LISTING.replace(" timeout 8s432ms expires 1m8s400ms", "")
    assert parse_table(listing, 2049).open_for_s == math.inf


def test_an_empty_set_is_a_shut_port() -> None:
    listing = LISTING.replace("\t\telements = { 2049 timeout 8s432ms expires 1m8s400ms }\n", "")
    state = parse_table(listing, 2049)
    assert (state.in_place, state.open_for_s) == (True, 0.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("996ms", 0.996), ("1s496ms", 1.496), ("2s", 2.0), ("1h1m1s", 3661.0), ("1d", 86400.0)],
)
def test_times_are_read_as_nft_writes_them(text: str, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("entry", "seconds"),
    [("add sf 2049 timeout 7", 7.0), ("", 0.0), ("add sf 2049 timeout 0", math.inf)],
)
def test_a_listing_of_ipset_is_understood(entry: str, seconds: float) -> None:
    listing = f"create sf bitmap:port range 2049-2049 timeout 1\n{entry}\n"
    assert parse_members(listing, "sf", 2049) == seconds


def test_the_port_is_open_until_the_first_lease_ends(tmp_path: Path) -> None:
    Claims(tmp_path, "a").write(100.0)
    Claims(tmp_path, "b").write(50.0)
    assert Claims(tmp_path, "a").least() == (50.0, "b")
    Claims(tmp_path, "b").drop()
    assert Claims(tmp_path, "a").least() == (100.0, "a")


@pytest.mark.parametrize("garbage", ["", "[]", "{}", '{"until": "x"}', '{"until": NaN}', "\x00"])
def test_an_unreadable_claim_keeps_the_port_shut(tmp_path: Path, garbage: str) -> None:
    Claims(tmp_path, "a").write(100.0)
    (tmp_path / "b.json").write_text(garbage)
    assert Claims(tmp_path, "a").least() == (0.0, "b")


def test_only_an_existing_claim_is_voided(tmp_path: Path) -> None:
    Claims(tmp_path, "a").write(100.0)
    Claims(tmp_path, "b").void()
    assert Claims(tmp_path, "a").least() == (100.0, "a")
    Claims(tmp_path, "a").void()
    assert Claims(tmp_path, "a").least() == (0.0, "a")


def fake_nft(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    write_script(directory / "nft", f'echo "$@" >> {directory}/calls\n{script}')
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    return directory / "calls"


def test_a_lease_of_another_volume_that_ran_out_keeps_the_port_shut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_nft(tmp_path, monkeypatch, "")
    Claims(tmp_path / "run", "music").write(monotonic() - 1)
    fence = claimed(NftFence(2049, tmp_path / "run", "data"))
    with pytest.raises(Refused, match="the lease of music has run out"):
        fence.arm(monotonic() + 5, monotonic() + 1)
    assert not calls.exists()


def test_nothing_is_opened_for_a_volume_that_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat that comes after the export was taken away: its claim would outlive the lease and
    keep the port shut for the other volumes until the next boot."""
    calls = fake_nft(tmp_path, monkeypatch, f"cat <<'X'\n{LISTING}\nX")
    data, music = (NftFence(2049, tmp_path / "run", name) for name in ("data", "music"))
    claimed(data).arm(monotonic() + 5000, monotonic() + 50)
    data.release()
    calls.unlink()
    with pytest.raises(Refused, match="data is not exported"):
        data.arm(monotonic() + 5000, monotonic() + 50)
    assert not calls.exists()
    data.ensure_closed()
    assert claimed(music).arm(monotonic() + 5000, monotonic() + 50) is False


def test_nothing_is_opened_when_the_lease_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_nft(tmp_path, monkeypatch, "")
    with pytest.raises(Refused):
        claimed(NftFence(2049, tmp_path, "data")).arm(monotonic() - 0.1, monotonic() + 1)
    assert not calls.exists()


def test_an_nft_that_hangs_is_given_up_at_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nft(tmp_path, monkeypatch, "exec sleep 60")
    with pytest.raises(TimedOut, match="took too long"):
        claimed(NftFence(2049, tmp_path, "data")).arm(monotonic() + 30, monotonic() + 0.4)


def chosen(directory: Path) -> str:
    return type(fence_from(config_of(paths=Paths(run=directory / "run")))).__name__


def test_a_kernel_that_is_slow_to_answer_is_asked_again_instead_of_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence_module, "PROBE_S", 0.2)
    monkeypatch.setattr(choice, "ipset_installed", lambda: True)
    fake_nft(tmp_path, monkeypatch, "exec sleep 5")
    with pytest.raises(TimedOut, match="fence:probe"):
        chosen(tmp_path)
    fake_nft(tmp_path, monkeypatch, "echo 'No such file or directory' >&2; exit 1")
    assert chosen(tmp_path) == "IpsetFence"
    fake_nft(tmp_path, monkeypatch, "exit 0")
    assert chosen(tmp_path) == "IpsetFence", "every process of this boot has the same"


def test_the_timeout_is_rounded_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_nft(tmp_path, monkeypatch, f"cat <<'X'\n{LISTING}\nX")
    until = monotonic() + 5
    assert claimed(NftFence(2049, tmp_path, "data")).arm(until, monotonic() + 2) is False
    (timeout,) = [w for w in calls.read_text().split() if w.endswith("ms") and w != "1ms"]
    assert 3000 < int(timeout[:-2]) <= 5000


def test_the_port_is_opened_until_the_first_lease_of_all_volumes_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_nft(tmp_path, monkeypatch, f"cat <<'X'\n{LISTING}\nX")
    Claims(tmp_path / "run", "music").write(monotonic() + 60)
    claimed(NftFence(2049, tmp_path / "run", "data")).arm(monotonic() + 5000, monotonic() + 50)
    (timeout,) = [w for w in calls.read_text().split() if w.endswith("ms") and w != "1ms"]
    assert int(timeout[:-2]) <= 60_000


def test_a_volume_that_was_shut_keeps_the_port_shut_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it has its lease again, or is served here no more."""
    fake_nft(tmp_path, monkeypatch, f"cat <<'X'\n{LISTING}\nX")
    data, music = (NftFence(2049, tmp_path / "run", name) for name in ("data", "music"))
    claimed(data).arm(monotonic() + 5000, monotonic() + 50)
    data.ensure_closed()
    with pytest.raises(Refused, match="the lease of data has run out"):
        claimed(music).arm(monotonic() + 5000, monotonic() + 50)
    data.release()
    assert music.arm(monotonic() + 5000, monotonic() + 50) is False


def test_rules_that_vanish_at_once_are_an_error_not_an_open_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nft(tmp_path, monkeypatch, "echo 'table inet standfast {}'")
    with pytest.raises(Exception, match="vanish as soon as they are put in place"):
        claimed(NftFence(2049, tmp_path, "data")).arm(monotonic() + 5, monotonic() + 2)


def test_an_nft_without_rights_is_an_error_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nft(tmp_path, monkeypatch, "echo 'Operation not permitted (you must be root)' >&2; exit 1")
    with pytest.raises(CommandFailed, match="you must be root"):
        NftFence(2049, tmp_path, "data").state()


def test_shutting_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_nft(tmp_path, monkeypatch, "")
    fence = claimed(NftFence(2049, tmp_path, "data"))
    with Claims(tmp_path, "music").locked(Deadline.after(1)):
        fence.ensure_closed()
    assert "delete table inet standfast" in calls.read_text()


def test_the_file_fence_opens_shuts_and_notices_its_loss(tmp_path: Path) -> None:
    fence = FileFence(tmp_path, 2049)
    assert not fence.state().in_place
    fence.ensure_closed()
    assert fence.state().in_place
    assert fence.state().open_for_s == 0
    until = monotonic() + 5
    assert fence.arm(until, monotonic() + 1) is False
    assert 0 < fence.state().open_for_s <= 5
    fence.path.unlink()
    assert fence.arm(until, monotonic() + 1) is True
    with pytest.raises(TimedOut):
        fence.arm(until, monotonic() - 0.1)
    fence.path.write_text("garbage")
    assert not fence.state().in_place
