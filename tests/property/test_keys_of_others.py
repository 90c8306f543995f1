"""Lines of authorized_keys, and requests of `standfast receive`, as anybody may have written them:
refused, or understood as what they are, and nothing else changes."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standfast.cli import direct, parser
from standfast.cli.receive import MOST_BYTES, request
from standfast.cli.receiver import Request
from standfast.errors import Refused, UsageError
from standfast.replication.authorized import (
    Bound,
    Change,
    with_line,
)
from standfast.replication.keys import PublicKey
from standfast.replication.loose_lines import UNKNOWN_SENDER, loose_lines
from standfast.system.lines import fields_of
from tests.support.configs import config_of
from tests.support.examples import examples

CONFIG = config_of("zippy", "c1", "c2", cluster="alo")
KIND = "ssh-ed25519"
BLOBS = [
    base64.b64encode(len(KIND).to_bytes(4, "big") + KIND.encode() + bytes([n]) * 36).decode()
    for n in (1, 2)
]
KEY = PublicKey(KIND, BLOBS[0], "standfast-alo-c1")
BOUND = Bound("c1", "192.168.1.3")
WORDS = [
    "restrict", "pty", "no-pty", "from=", '"192.168.1.3"', '"*"', "command=",
    '"standfast receive"', '"standfast receive data-services"', '"standfast receive --from c1"',
    '"standfast receive data-services --from c2"', '"sh"', '"', "\\", ",", " ", "\t", "\n", "\r\n",
    "#", "\x0b", "\x85", "\u2028", "\x00", KIND, *BLOBS, f"{KIND} {BLOBS[0]}", f"{KIND} {BLOBS[1]}",
    "standfast-alo-c1", "standfast-alo-c2", "some body", "cert-authority",
]  # fmt: skip
FILES = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=14).map(
    lambda words: "".join(words).encode("utf-8", "surrogatepass")
) | st.binary(max_size=60)


def is_of_the_key(line: bytes) -> bool:
    return not line.startswith(b"#") and BLOBS[0] in fields_of(line.decode())


@examples(500)
@given(FILES)
def test_any_file_gets_one_line_of_the_key_and_keeps_the_others(before: bytes) -> None:
    try:
        after, change = with_line(before, "data-services", BOUND, KEY, "keys")
    except Refused as refusal:
        assert "keys" in str(refusal) and str(refusal).isprintable()
        return
    again, nothing = with_line(after, "data-services", BOUND, KEY, "keys")
    assert (again, nothing) == (after, Change.UNCHANGED)
    lines, kept = after.split(b"\n"), before.split(b"\n")
    if change is Change.ADDED:
        assert after.startswith(before)
    else:
        assert len(lines) - len(kept) in (0, 1)
        assert sum(a != b for a, b in zip(kept, lines, strict=False)) <= 1
    texts = [line.decode("utf-8", "replace").strip().encode() for line in lines]
    [ours] = [line for line in texts if is_of_the_key(line)]
    assert b"restrict" in ours and b"--from c1" in ours and b"from=" in ours


@examples(500)
@given(FILES)
def test_in_any_file_the_line_to_put_instead_is_one_that_is_not_named_again(text: bytes) -> None:
    for line in loose_lines({"keys": text}, CONFIG):
        assert line.what and line.fix and "\n" not in line.instead
        if UNKNOWN_SENDER not in line.instead:
            assert loose_lines({"keys": line.instead.encode("utf-8", "replace")}, CONFIG) == []


@examples(500)
@given(st.binary(max_size=200))
def test_any_request_is_four_words_or_none(data: bytes) -> None:
    try:
        read = Request.parse(data)
    except ValueError:
        assert data.count(b"\0") < 3
        return
    words = (read.volume, read.bound, read.connection, read.asked)
    assert "\0".join(words).encode(errors="surrogateescape") == data


@examples(300)
@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.sampled_from([None, "c1"]),
)
def test_what_sshd_was_asked_for_arrives_as_it_was_or_is_cut(asked: str, bound: str | None) -> None:
    sent = request("data-services", bound, "a 1 b 22", asked)
    assert len(sent) <= MOST_BYTES
    read = Request.parse(sent)
    assert (read.volume, read.bound, read.connection) == ("data-services", bound or "", "a 1 b 22")
    assert asked.startswith(read.asked)
    assert read.asked == asked or len(read.asked) > len("standfast receive ") + 64


@examples(500)
@given(
    st.lists(
        st.sampled_from(["data-services", "--from", "c1", "-x", "", "--from=c1", "a b", "\n", "É"]),
        max_size=4,
    )
)
def test_what_is_read_without_the_parser_means_the_same_to_it(words: list[str]) -> None:
    known = direct.recognise(["receive", *words])
    if known is None:
        return
    _, quick = known
    parsed = parser.build(["receive"]).parse_args(["receive", *words])
    assert (quick.volume, vars(quick)["from"]) == (parsed.volume, vars(parsed)["from"])


def test_a_line_without_a_node_after_from_is_the_parsers_to_refuse() -> None:
    assert direct.recognise(["receive", "data-services", "--from"]) is None
    with pytest.raises(UsageError):
        parser.build(["receive"]).parse_args(["receive", "data-services", "--from"])
