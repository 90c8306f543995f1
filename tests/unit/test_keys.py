"""The replication key, and its line on a standby."""

from __future__ import annotations

import base64
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.config.model import Config, Node, Paths, Replication
from standfast.errors import Refused, StandfastError
from standfast.reasons import Reason
from standfast.replication.authorized import (
    Bound,
    Change,
    authorize,
    authorized_line,
    nixos_form,
    with_line,
)
from standfast.replication.authorized_file import authorized_keys_of
from standfast.replication.keys import PublicKey, ensure_key, public_key, public_path, ssh_argv
from standfast.replication.loose_lines import loose_lines
from standfast.system.clock import Deadline
from tests.support import needs
from tests.support.configs import config_of

ME = pwd.getpwuid(os.getuid()).pw_name

needs_ssh_keygen = needs.tool("ssh-keygen", "openssh-client")


def blob_of(number: int, kind: str = "ssh-ed25519") -> str:
    head = len(kind).to_bytes(4, "big") + kind.encode()
    return base64.b64encode(head + b"\0\0\0\x20" + bytes([number]) * 32).decode()


KEY = PublicKey("ssh-ed25519", blob_of(1), "root@c1-replication")
OTHER = PublicKey("ssh-ed25519", blob_of(2), "somebody@else")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_of(
        "zippy",
        "c1",
        cluster="alo",
        paths=Paths(state=tmp_path / "var"),
        replication=Replication(ssh_key=tmp_path / "etc" / "replication_key"),
    )


@pytest.fixture
def soon() -> Deadline:
    return Deadline.after(20)


# The key


@needs_ssh_keygen
def test_a_missing_key_is_made_once_with_the_name_of_its_node(
    config: Config, soon: Deadline
) -> None:
    private = config.replication.ssh_key
    assert ensure_key(config, soon)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key = public_key(config, soon)
    assert key.kind == "ssh-ed25519" and key.comment == "standfast-alo-zippy"
    before = private.read_bytes()
    assert not ensure_key(config, soon)
    assert private.read_bytes() == before
    assert sorted(path.name for path in private.parent.iterdir()) == [
        "replication_key",
        "replication_key.pub",
    ]


@needs_ssh_keygen
def test_the_public_half_is_told_by_the_private_one(config: Config, soon: Deadline) -> None:
    ensure_key(config, soon)
    told = public_key(config, soon)
    public_path(config.replication.ssh_key).unlink()
    assert public_key(config, soon).blob == told.blob


@needs_ssh_keygen
def test_half_a_key_is_not_made_good_by_a_new_one(config: Config, soon: Deadline) -> None:
    ensure_key(config, soon)
    config.replication.ssh_key.unlink()
    with pytest.raises(Refused, match="put the private key back") as refusal:
        ensure_key(config, soon)
    assert refusal.value.reason is Reason.BAD_KEY


@needs_ssh_keygen
def test_a_key_that_others_can_read_is_refused(config: Config, soon: Deadline) -> None:
    ensure_key(config, soon)
    config.replication.ssh_key.chmod(0o640)
    with pytest.raises(Refused, match="chmod 0600"):
        public_key(config, soon)


BAD_KEYS = {
    "two lines": f"ssh-ed25519 {blob_of(1)} c\nssh-ed25519 {blob_of(2)} d",
    "options first": f'command="sh" ssh-ed25519 {blob_of(1)} c',
    "quote in the comment": f'ssh-ed25519 {blob_of(1)} a"b',
    "two words of comment": f"ssh-ed25519 {blob_of(1)} a b",
    "not base64": "ssh-ed25519 AAAA!!!! c",
    "other kind inside": f"ssh-ed25519 {blob_of(1, 'ssh-dss')} c",
    "kind unknown": f"ssh-dss {blob_of(1, 'ssh-dss')} c",
    "short": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 c",
    "nothing": "",
    "a return": f"ssh-ed25519 {blob_of(1)} a\rssh-ed25519",
    "private": "-----BEGIN OPENSSH PRIVATE KEY-----",
}


@pytest.mark.parametrize("text", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_only_one_whole_public_key_is_taken(text: str) -> None:
    with pytest.raises(Refused) as refusal:
        PublicKey.parse(text)
    assert refusal.value.reason is Reason.BAD_KEY


def test_a_public_key_is_read_with_and_without_a_comment() -> None:
    assert PublicKey.parse(f"{KEY}\n") == KEY
    assert PublicKey.parse(f"ssh-ed25519 {KEY.blob}").comment == ""


def test_ssh_asks_nobody_and_notes_a_new_host_only_when_told(config: Config) -> None:
    argv = ssh_argv(config, "c1")
    assert argv[-1] == "root@192.168.1.3"
    assert "BatchMode=yes" in argv and "StrictHostKeyChecking=yes" in argv
    ours = config.paths.state / "known_hosts"
    assert f'UserKnownHostsFile="{ours}" ~/.ssh/known_hosts' in argv
    assert "StrictHostKeyChecking=accept-new" in ssh_argv(config, "c1", accept_new=True)


@pytest.mark.parametrize(
    ("own", "there", "options"),
    [
        ("127.0.0.3", "127.0.0.2", ["-o", "BindAddress=127.0.0.3"]),
        ("127.0.0.1", "127.0.0.2", []),
        ("192.0.2.1", "127.0.0.2", []),
        ("127.0.0.3", "::1", []),
        ("zippy.lan", "127.0.0.2", []),
        ("127.0.0.3", "c1.lan", []),
    ],
    ids=["another one", "the one that is taken anyway", "not here", "kinds", "name", "name there"],
)
def test_ssh_leaves_by_the_address_of_its_node(
    config: Config, own: str, there: str, options: list[str]
) -> None:
    nodes = {"zippy": Node(address=own), "c1": Node(address=there)}
    argv = ssh_argv(replace(config, node="zippy", nodes=nodes), "c1")
    assert argv[1:3] == options or (not options and "BindAddress" not in " ".join(argv))


# The line


def test_the_line_restricts_the_key_to_the_receive_of_the_volume_as_one_node() -> None:
    line = authorized_line("data-services", ZIPPY, KEY)
    receive = "standfast receive data-services --from zippy"
    assert line == f'restrict,from="192.168.1.2",command="{receive}" {KEY}'
    every = authorized_line(None, ZIPPY, KEY)
    assert every == f'restrict,from="192.168.1.2",command="standfast receive --from zippy" {KEY}'
    assert nixos_form([line]) == f"nfsServicesStandby.replicationKeys = [ ''{line}'' ];"


def test_an_address_is_compared_and_a_host_name_is_not(config: Config) -> None:
    assert Bound.to(config, "c1") == Bound("c1", "192.168.1.3")
    for address, compared in (("FD00::1", "fd00::1"), ("c1.lan", None)):
        named = replace(config, nodes={**config.nodes, "c1": Node(address=address)})
        assert Bound.to(named, "c1") == Bound("c1", compared)
    assert authorized_line(None, Bound("c1", None), KEY) == (
        f'restrict,command="standfast receive --from c1" {KEY}'
    )


def test_a_key_is_that_of_the_node_which_is_named_or_which_its_comment_names(
    config: Config,
) -> None:
    made = PublicKey(KEY.kind, KEY.blob, "standfast-alo-c1")
    assert Bound.of_key(config, made, None).node == "c1"
    assert Bound.of_key(config, KEY, "c1").node == "c1"
    with pytest.raises(Refused, match=r"whose key is it.*--from NODE, one of: c1"):
        Bound.of_key(config, KEY, None)
    for other in ("zippy", "c2", "c"):
        with pytest.raises(Refused, match=f"{other} is not another storage node.*: c1"):
            Bound.of_key(config, KEY, other)


def changed(text: str, volume: str = "data-services") -> tuple[str, Change]:
    after, change = with_line(text.encode(), volume, ZIPPY, KEY, "authorized_keys")
    return after.decode(), change


FOREIGN = f'# mine\n\n{OTHER}\nfrom="10.0.0.0/8",command="a b" {OTHER}x\n'
ZIPPY = Bound("zippy", "192.168.1.2")
LINE = authorized_line("data-services", ZIPPY, KEY) + "\n"
AS_ZIPPY = 'command="standfast receive data-services --from zippy"'
OLDER = 'command="standfast receive data-services"'


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ("", LINE, Change.ADDED),
        (FOREIGN, FOREIGN + LINE, Change.ADDED),
        (FOREIGN[:-1], FOREIGN + LINE, Change.ADDED),
        (f"# {KEY}\n", f"# {KEY}\n{LINE}", Change.ADDED),
        (FOREIGN + LINE + FOREIGN, FOREIGN + LINE + FOREIGN, Change.UNCHANGED),
        (f"{OLDER} {KEY}\n{FOREIGN}", LINE + FOREIGN, Change.UPDATED),
        (f"restrict,{OLDER} {KEY}\n", LINE, Change.UPDATED),
        (f"restrict,{AS_ZIPPY} {KEY}\n", LINE, Change.UPDATED),
        (
            f'restrict,expiry-time="20300101",from="10.0.0.1",{OLDER} {KEY}\n',
            f'restrict,expiry-time="20300101",from="10.0.0.1",{AS_ZIPPY} {KEY}\n',
            Change.UPDATED,
        ),
        (
            f'{AS_ZIPPY},from="a-jump-host",restrict {KEY}\n',
            f'{AS_ZIPPY},from="a-jump-host",restrict {KEY}\n',
            Change.UNCHANGED,
        ),
        (
            f'restrict,command="standfast receive media" {KEY}\n',
            authorized_line(None, ZIPPY, KEY) + "\n",
            Change.UPDATED,
        ),
        (
            f'restrict,from="192.168.1.2",command="/opt/bin/standfast receive media" {KEY}\n',
            'restrict,from="192.168.1.2",command="/opt/bin/standfast receive --from zippy" '
            f"{KEY}\n",
            Change.UPDATED,
        ),
        (
            f'command="standfast receive",restrict {KEY}\n',
            authorized_line(None, ZIPPY, KEY) + "\n",
            Change.UPDATED,
        ),
    ],
)
def test_the_key_gets_one_line_and_the_others_stay(before: str, after: str, change: Change) -> None:
    assert changed(before) == (after, change)


@pytest.mark.parametrize(
    "line",
    [
        f"{KEY}",
        f"restrict {KEY}",
        f'restrict,command="bash" {KEY}',
        f'restrict,command="standfast receive data-services; sh" {KEY}',
        f'restrict,command="standfast receive data-services --from a; sh" {KEY}',
        f'restrict,command="standfast receive --from" {KEY}',
        f'restrict,command="standfast receive --from -x" {KEY}',
        f'restrict,command="standfast receive --instance" {KEY}',
        f'restrict,command="sh -c standfast receive data-services" {KEY}',
        f'restrict,pty,command="standfast receive data-services" {KEY}',
        f'restrict,port-forwarding,command="standfast receive data-services" {KEY}',
        f'restrict,environment="A=B",command="standfast receive data-services" {KEY}',
        f'command="standfast receive data-services",command="sh" {KEY}',
        f"cert-authority {KEY}",
        f"nonsense nonsense {KEY}",
    ],
)
def test_a_key_that_may_do_something_else_already_is_left_to_a_person(line: str) -> None:
    with pytest.raises(Refused, match="line 2 of authorized_keys lets this key do something else"):
        changed(f"{OTHER}\n{line}\n")


def test_a_line_that_works_gets_no_address_from_which_its_node_does_not_come() -> None:
    text = f"restrict,{OLDER} {KEY}\n".encode()
    after, change = with_line(text, "data-services", ZIPPY, KEY, "keys", elsewhere=True)
    assert (after.decode(), change) == (f"restrict,{AS_ZIPPY} {KEY}\n", Change.UPDATED)
    again, change = with_line(after, "data-services", ZIPPY, KEY, "keys", elsewhere=True)
    assert (again, change) == (after, Change.UNCHANGED)


def test_two_lines_of_one_key_are_left_to_a_person() -> None:
    with pytest.raises(Refused, match="lines 1, 2 of authorized_keys"):
        changed(LINE + LINE)


def test_a_key_is_not_given_to_another_node() -> None:
    theirs = authorized_line("data-services", Bound("c2", "192.168.1.4"), KEY)
    with pytest.raises(Refused, match="line 2 of authorized_keys has this key as that of c2"):
        changed(f"{OTHER}\n{theirs}\n")


def test_lines_that_bind_a_key_to_less_than_they_could_are_named_with_what_to_put_there(
    config: Config,
) -> None:
    made = PublicKey(KEY.kind, KEY.blob, "standfast-alo-c1")
    whole = authorized_line("data-services", Bound("c1", "192.168.1.3"), made)
    unbound = f"restrict,{OLDER} {made}"
    anywhere = f'restrict,command="standfast receive data-services --from c1" {OTHER}'
    unknown = f"restrict,{OLDER} {OTHER.kind} {OTHER.blob} some body"
    text = f"# {unbound}\n# {whole}\n\n{unbound}\n{anywhere}\n"
    found = loose_lines({"keys": text.encode() + b"\xff\xfe"}, config)
    assert [(line.number, line.what) for line in found] == [
        (4, 'lacks --from c1, from="192.168.1.3"'),
        (5, 'lacks from="192.168.1.3"'),
    ]
    assert found[0].instead == whole
    assert "--from c1" in found[1].instead and 'from="192.168.1.3"' in found[1].instead
    [found_unknown] = loose_lines({"keys": unknown.encode()}, config)
    assert found_unknown.what == "lacks --from NODE" and "--from NODE" in found_unknown.instead
    assert loose_lines({"keys": f"{whole}\n".encode()}, config) == []


MADE = PublicKey(KEY.kind, KEY.blob, "standfast-alo-c1")
OF_C1 = authorized_line("data-services", Bound("c1", "192.168.1.3"), MADE)


@pytest.mark.parametrize(
    ("further", "what"),
    [
        (str(MADE), "lets do something else than receive"),
        (f"{KEY.kind} {KEY.blob}", "lets do something else than receive"),
        (f'command="standfast receive",pty {MADE}', "lets do something else than receive"),
        (f'odd"option {MADE}', "lets do something else than receive"),
        (OF_C1, "lets receive"),
    ],
)
def test_every_further_line_of_a_key_is_named_wherever_it_is(
    config: Config, further: str, what: str
) -> None:
    for files, place in (
        ({"keys": f"{OF_C1}\n{further}\n"}, ("keys", 2)),
        ({"keys": f"{OF_C1}\n", "keys2": f"\n{OTHER}\n{further}\n"}, ("keys2", 3)),
    ):
        [line] = loose_lines({name: text.encode() for name, text in files.items()}, config)
        assert (line.source, line.number) == place and line.fix == "remove it"
        assert line.what.startswith(f"{what} whoever has the key of line 1 of keys")


def test_a_free_line_above_the_keys_own_and_one_of_a_nodes_key_alone_are_named(
    config: Config,
) -> None:
    [line] = loose_lines({"keys": f"{MADE}\n{OF_C1}\n".encode()}, config)
    assert line.number == 1 and "something else than receive" in line.what
    [line] = loose_lines({"keys": f"{OTHER}\n{MADE}\n".encode()}, config)
    assert line.number == 2 and line.what == "lets the key of c1 do something else than receive"


@pytest.mark.parametrize(
    ("patterns", "wide"),
    [
        ("*", "*"),
        ("192.168.1.3,10.0.0.0/8", "10.0.0.0/8"),
        ("192.168.1.?,fd00::/64,!192.168.1.9", "192.168.1.?, fd00::/64"),
        ("192.168.1.3/oops", "192.168.1.3/oops"),
        ("192.168.1.3", ""),
        ("192.168.1.3,10.0.0.1,fd00::1/128,10.0.0.2/32,a-jump-host,!10.0.0.0/8", ""),
    ],
)
def test_a_from_that_is_for_more_than_single_addresses_is_named(
    config: Config, patterns: str, wide: str
) -> None:
    line = OF_C1.replace("192.168.1.3", patterns)
    found = [(one.what, one.instead) for one in loose_lines({"keys": line.encode()}, config)]
    assert found == ([(f"lets its key in from {wide}", OF_C1)] if wide else [])


def test_a_comment_that_names_another_node_than_the_line_is_named(config: Config) -> None:
    named = replace(config, nodes={**config.nodes, "c2": Node(address="192.168.1.4")})
    line = OF_C1.replace("standfast-alo-c1", "standfast-alo-c2")
    [found] = loose_lines({"keys": line.encode()}, named)
    assert found.what == "takes the key for that of c1, and its comment names c2"
    assert not found.instead


# The file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".ssh" / "authorized_keys"


def test_authorizing_twice_changes_the_file_once(file: Path) -> None:
    assert authorize(file, ME, "data-services", ZIPPY, KEY, dry_run=True) is Change.ADDED
    assert not file.parent.exists()
    assert authorize(file, ME, "data-services", ZIPPY, KEY) is Change.ADDED
    first = file.stat()
    assert stat.S_IMODE(first.st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert authorize(file, ME, "data-services", ZIPPY, KEY) is Change.UNCHANGED
    assert file.stat().st_ino == first.st_ino
    assert authorize(file, ME, "media", ZIPPY, KEY) is Change.UPDATED
    assert file.read_text() == authorized_line(None, ZIPPY, KEY) + "\n"
    assert [path.name for path in file.parent.iterdir()] == ["authorized_keys"]


def test_bytes_that_are_no_text_stay_as_they_are(file: Path) -> None:
    file.parent.mkdir(mode=0o700)
    file.write_bytes(b"# \xff\xfe\r\n\x0bodd\n")
    file.chmod(0o600)
    authorize(file, ME, "data-services", ZIPPY, KEY)
    assert file.read_bytes() == b"# \xff\xfe\r\n\x0bodd\n" + LINE.encode()
    authorize(file, ME, "media", ZIPPY, KEY)
    changed_line = authorized_line(None, ZIPPY, KEY).encode() + b"\n"
    assert file.read_bytes() == b"# \xff\xfe\r\n\x0bodd\n" + changed_line


def make_symlink(file: Path) -> None:
    file.parent.mkdir(mode=0o700)
    file.with_name("real").touch(0o600)
    file.symlink_to("real")


def link_directory(file: Path) -> None:
    (file.parent.parent / "real").mkdir(mode=0o700)
    file.parent.symlink_to("real")


def open_directory(file: Path) -> None:
    file.parent.mkdir()
    file.parent.chmod(0o770)


def open_file(file: Path) -> None:
    file.parent.mkdir(mode=0o700)
    file.touch()
    file.chmod(0o620)


def make_fifo(file: Path) -> None:
    file.parent.mkdir(mode=0o700)
    os.mkfifo(file, 0o600)


@pytest.mark.parametrize(
    "spoil", [make_symlink, link_directory, open_directory, open_file, make_fifo]
)
def test_a_file_that_others_write_or_that_is_elsewhere_is_refused(
    file: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(file)
    with pytest.raises(Refused) as refusal:
        authorize(file, ME, "data-services", ZIPPY, KEY)
    assert refusal.value.reason is Reason.BAD_KEY
    assert "replicationKeys" in str(refusal.value)


def test_what_lies_beside_the_file_is_in_nobodys_way(file: Path) -> None:
    file.parent.mkdir(mode=0o700)
    planted = file.with_name(f".authorized_keys.{os.getpid()}")
    planted.write_text("of somebody else")
    authorize(file, ME, "data-services", ZIPPY, KEY)
    assert planted.read_text() == "of somebody else"


def test_a_file_that_others_write_is_told_with_the_way_out(file: Path) -> None:
    open_file(file)
    with pytest.raises(Refused, match=f"chmod go-w {file}"):
        authorize(file, ME, "data-services", ZIPPY, KEY)


def test_a_file_of_another_user_is_refused(file: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: gives a file to another user")
    file.parent.mkdir(mode=0o700)
    file.touch(0o600)
    os.chown(file, 65534, -1)
    with pytest.raises(Refused, match=f"belongs to uid 65534.* chown {ME} {file}"):
        authorize(file, ME, "data-services", ZIPPY, KEY)


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(StandfastError, match="there is no user nobody-of-that-name"):
        authorized_keys_of("nobody-of-that-name")
    assert authorized_keys_of(ME).parts[-2:] == (".ssh", "authorized_keys")


def test_a_new_file_belongs_to_the_user_of_the_replication(file: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: writes another user's file")
    authorize(file, "nobody", "data-services", ZIPPY, KEY)
    nobody = pwd.getpwnam("nobody").pw_uid
    assert (file.stat().st_uid, file.parent.stat().st_uid) == (nobody, nobody)


def test_the_configured_user_and_path_are_used(config: Config, tmp_path: Path) -> None:
    other = replace(
        config, replication=replace(config.replication, ssh_user="sync", ssh_key=tmp_path / "k")
    )
    argv = ssh_argv(other, "c1")
    assert argv[-1] == "sync@192.168.1.3" and argv[argv.index("-i") + 1] == str(tmp_path / "k")
