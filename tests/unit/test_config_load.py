from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from standfast.config.load import load, load_all, load_stored, load_volume
from standfast.config.model import Config, LeaseTiming, Node
from standfast.config.parse import FORMER
from standfast.config.problems import InvalidConfig
from standfast.errors import ConfigError

MINIMAL = """\
cluster = "alo"
node = "zippy"
{top}
[nodes.zippy]
address = "192.168.1.2"
[nodes.c1]
address = "192.168.1.3"
{tables}
"""


def write(tmp_path: Path, top: str = "", tables: str = "", name: str = "data-services") -> Path:
    path = tmp_path / f"{name}.toml"
    path.write_text(MINIMAL.format(top=top, tables=tables))
    return path


def problems(path: Path, **options: bool) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        load(path, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert all(line.startswith(f"{path}: ") for line in text.splitlines()), text
    return [line.removeprefix(f"{path}: ") for line in text.splitlines()]


def the_problem(path: Path) -> str:
    reported = problems(path)
    assert len(reported) == 1, reported
    return reported[0]


def test_a_minimal_file_gives_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert load(path) == Config(
        volume="data-services",
        source=path,
        cluster="alo",
        node="zippy",
        nodes={"zippy": Node(address="192.168.1.2"), "c1": Node(address="192.168.1.3")},
    )


def test_whole_numbers_do_for_decimal_ones(tmp_path: Path) -> None:
    config = load(write(tmp_path, tables="[lease]\nwait = 13"))
    assert config.lease.wait == 13.0
    assert isinstance(config.lease.wait, float)


def test_every_value_of_the_file_arrives(tmp_path: Path) -> None:
    config = load(
        write(
            tmp_path,
            top='mode = "manual"\npreferred = "c1"',
            tables='[consul]\naddresses = ["127.0.0.1:8500", "https://c1:8501"]\n'
            'token_file = "/etc/standfast/token"\n[paths]\nlive = "/srv//x/"\n'
            "[nfs]\nport = 2050\n",
        )
    )
    assert (config.mode, config.preferred, config.nfs.port) == ("manual", "c1", 2050)
    assert config.consul.addresses == ("127.0.0.1:8500", "https://c1:8501")
    assert config.consul.token_file == Path("/etc/standfast/token")
    assert config.paths.live == Path("/srv/x")


@pytest.mark.parametrize("key", FORMER)
def test_a_key_of_an_earlier_version_is_told_with_what_to_do(tmp_path: Path, key: str) -> None:
    table, _, name = key.rpartition(".")
    line = f"[{table}]\n{name} = 1\n" if table else ""
    path = write(tmp_path, top="" if table else f"{name} = 1", tables=line)
    assert the_problem(path) == f"{key} = 1: unknown key; {FORMER[key]}"


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (
            "[nomad]\nmeta_value = 8",
            'nomad.meta_value = 8: unknown key; take it out: it is "primary"',
        ),
        ("[lease]\nlenght = 8", "lease.lenght = 8: unknown key; did you mean lease.length?"),
        ("[lease]\nwait = true", "lease.wait = true: must be a number, not a boolean; "),
        ('[lease]\nwait = "12"', 'lease.wait = "12": must be a number, not a text; '),
        ("[lease]\nwait = nan", "lease.wait = nan: must be a finite number; "),
        ("[lease]\nwait = inf", "lease.wait = inf: must be a finite number; "),
        (f"[lease]\nwait = 1{'0' * 400}", "lease.wait = a number of more than 30 digits: must be"),
        ("[lease]\nheartbeat = 0", "lease.heartbeat = 0: must be at least 0.1 s; "),
        ("[lease]\nwait = 1e9", "lease.wait = 1000000000: must be at most 2678400 s; "),
        ("[nfs]\nport = 65536", "nfs.port = 65536: must be at most 65535; "),
        ("[nfs]\nport = 2049.0", "nfs.port = 2049: must be a whole number, not a decimal number"),
        ("[nfs]\nport = true", "nfs.port = true: must be a whole number, not a boolean; "),
        ('[fence]\nbackend = "iptables"', 'fence.backend = "iptables": must be one of "auto", '),
        ('[paths]\nlive = "persist"', 'paths.live = "persist": must be an absolute path; '),
        ('[paths]\nlive = "/a/../b"', 'paths.live = "/a/../b": must not contain ..; '),
        ('[paths]\nlive = "/a\\nb"', 'paths.live = "/a\\nb": a path has printable characters'),
        ("[paths]\nlive = 1979-05-27", "paths.live = 1979-05-27: must be an absolute path, not a "),
        ("[nodes.c2]\n", "nodes.c2.address: missing, and it has no default; add address = "),
        ('[nodes.c2]\naddress = "192.168.1.300"', 'nodes.c2.address = "192.168.1.300": must be an'),
        ('[nodes.c2]\naddress = "0.0.0.0"', 'nodes.c2.address = "0.0.0.0": must be an IP address'),
        ('[nodes."a b"]\naddress = "c9"', 'nodes."a b": a name has up to 128 letters, '),
        ('[consul]\naddresses = ["x:0"]', 'consul.addresses = ["x:0"]: must be HOST:PORT'),
        ("[consul]\naddresses = [8500]", "consul.addresses = [8500]: a list of texts can't hold"),
        ('[consul]\nprefix = "a-clients"', 'consul.prefix = "a-clients": must be names'),
        ('[consul]\nprefix = "/a"', 'consul.prefix = "/a": must be names with single slashes'),
        ('[nfs]\nclients = ["a b"]', 'nfs.clients = ["a b"]: must not be empty or hold blanks'),
        ('[nfs]\nunit = "nfs"', 'nfs.unit = "nfs": must be the full name of a service unit'),
        ("[replication]\nallow_full = 1", "replication.allow_full = 1: must be true or false"),
        ('[replication]\ncompression = "lz4"', 'replication.compression = "lz4": must be one of'),
        ("[retention_own]\nkeep_last = 0", "retention_own.keep_last = 0: must be at least 1; "),
        ('[guard]\nstandby_hint = "a\\u0007"', 'guard.standby_hint = "a\\u0007": a text has'),
    ],
)
def test_a_bad_value_is_reported_with_key_value_rule_and_way_out(
    tmp_path: Path, tables: str, said: str
) -> None:
    problem = the_problem(write(tmp_path, tables=tables))
    assert problem.startswith(said)
    assert "; " in problem


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "data-services.toml"
    path.write_text('bogus = 1\nnode = "c9"\n[lease]\nwait = 5\nfence = "x"\n[nodes.c1]\n')
    keys = [line.split(":")[0].split(" = ")[0] for line in problems(path)]
    # The timing rule says nothing while one of its values can't be read.
    assert keys == ["bogus", "cluster", "nodes.c1.address", "lease.fence", "node"]


def test_a_table_of_the_wrong_kind_is_reported_once(tmp_path: Path) -> None:
    assert the_problem(write(tmp_path, top="lease = 3")).startswith("lease = 3: must be a table")
    assert the_problem(write(tmp_path, tables="[nodes]\nc2 = 3")) == (
        "nodes.c2 = 3: must be a table, not a whole number; write it as [nodes.c2]"
    )
    path = tmp_path / "data-services.toml"
    path.write_text('cluster = "alo"\nnodes = [1]\n')
    assert problems(path) == ["nodes = [1]: must be a table of named tables; write [nodes.NAME]"]


def test_a_strange_key_can_not_break_the_line(tmp_path: Path) -> None:
    said = the_problem(write(tmp_path, top='"a\\u001b[31m\\nb" = 1'))
    assert said.startswith('"a\\u001b[31m\\nb" = 1: unknown key; ')
    assert said.isprintable()


def test_a_thousand_problems_are_cut_short(tmp_path: Path) -> None:
    reported = problems(write(tmp_path, top="\n".join(f"k{n} = 1" for n in range(1000))))
    assert len(reported) == 51
    assert reported[-1] == "and 950 more"


def test_a_missing_file_names_the_volumes_that_there_are(tmp_path: Path) -> None:
    assert "standfast config example" in the_problem(tmp_path / "data-services.toml")
    write(tmp_path, name="media")
    assert the_problem(tmp_path / "data-services.toml") == (
        "there is no such file; the volumes there are: media"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"= 3", "it is not TOML: "),
        (b'cluster = "\xff"', "it is not UTF-8 (byte 11)"),
        (b"#" * 10_000_000, "it is larger than 1048576 bytes"),
        (b"a = " + b"[" * 100_000, "it is not usable TOML: "),
        (b"a = " + b"1" * 5000, "it is not usable TOML: "),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "data-services.toml"
    path.write_bytes(content)
    assert the_problem(path).startswith(said)


def test_what_is_no_readable_file_is_refused_without_waiting(tmp_path: Path) -> None:
    directory = tmp_path / "x.toml"
    directory.mkdir()
    assert the_problem(directory).startswith("can't be read: Is a directory; ")
    fifo = tmp_path / "y.toml"
    os.mkfifo(fifo)
    assert "cluster: missing" in problems(fifo)[0]
    assert the_problem(Path("/proc/self/mem.toml/x.toml")).startswith("there is no such file")
    with pytest.raises(ConfigError, match="can't be read: embedded null byte"):
        load(Path("a\0b.toml"))


@pytest.mark.parametrize("name", ["Data", "a_b", "-a", "a-", "a.b", "x" * 64])
def test_a_volume_has_a_plain_name(tmp_path: Path, name: str) -> None:
    assert the_problem(write(tmp_path, name=name)).startswith(f'volume = "{name[:50]}')


def test_the_host_name_is_the_default_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "c1.example.net")
    path = write(tmp_path)
    path.write_text(path.read_text().replace('node = "zippy"\n', ""))
    assert load(path).node == "c1"
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop")
    assert the_problem(path).startswith(
        'node: "laptop" is this host\'s name, and the storage nodes are c1, zippy; '
    )
    path.write_text(path.read_text() + f'\n[paths]\nstate = "{tmp_path}"\n')
    (tmp_path / "data-services").mkdir()
    (tmp_path / "data-services/node").write_text("zippy\n")
    assert 'set node = "zippy": that is this node, by its own state' in the_problem(path)
    client = load(path, require_storage=False)
    assert (client.node, client.standbys) == ("laptop", ("c1", "zippy"))


def test_the_node_of_the_caller_wins_and_has_to_be_a_storage_node(tmp_path: Path) -> None:
    assert load(write(tmp_path), node="c1").node == "c1"
    with pytest.raises(ConfigError, match='"c9" was asked for, and the storage nodes are c1'):
        load(write(tmp_path), node="c9")


def test_an_unknown_node_in_the_file_is_refused_on_clients_too(tmp_path: Path) -> None:
    path = write(tmp_path, top='preferred = "c7"')
    assert problems(path, require_storage=False) == [
        'preferred = "c7": is not one of the nodes (c1, zippy); use one of them or add [nodes.c7]'
    ]


def test_the_only_volume_is_the_default(tmp_path: Path) -> None:
    environ = {"STANDFAST_CONFIG_DIR": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"holds no \*.toml file"):
        load_volume(None, environ=environ)
    write(tmp_path)
    assert load_volume(None, environ=environ).volume == "data-services"
    write(tmp_path, name="media")
    with pytest.raises(ConfigError, match='several volumes \\("data-services", "media"\\)'):
        load_volume(None, environ=environ)
    assert load_volume("media", environ=environ).volume == "media"
    with pytest.raises(ConfigError, match="there is no such directory"):
        load_volume(None, environ={"STANDFAST_CONFIG_DIR": str(tmp_path / "none")})


@pytest.mark.parametrize("volume", ["../data-services", "", "a/b", "a\0"])
def test_the_name_of_a_volume_can_not_lead_to_another_file(tmp_path: Path, volume: str) -> None:
    write(tmp_path)
    environ = {"STANDFAST_CONFIG_DIR": str(tmp_path / "sub")}
    with pytest.raises(ConfigError, match="1 to 63 small letters"):
        load_volume(volume, environ=environ)


def test_volumes_of_one_node_are_checked_together(tmp_path: Path) -> None:
    environ = {"STANDFAST_CONFIG_DIR": str(tmp_path)}
    write(tmp_path)
    write(tmp_path, name="media", tables='[consul]\nservice = "data-services"')
    with pytest.raises(ConfigError) as caught:
        load_all(environ=environ)
    text = str(caught.value)
    assert 'consul.service = "data-services": is also the service of volume data-services' in text
    assert 'paths.live = "/persist/services": overlaps with paths.live (/persist/services)' in text
    assert all(line.startswith(f"{tmp_path}/media.toml: ") for line in text.splitlines())
    write(
        tmp_path,
        name="media",
        tables='[paths]\nlive = "/persist/media"\nstandby = "/persist/media-standby"\n'
        'bind = "/data/media"',
    )
    assert [config.volume for config in load_all(environ=environ)] == ["data-services", "media"]


ELSEWHERE = """\
cluster = "alo"
[consul]
service = "media"
[nodes.c1]
address = "192.168.1.3"
[nodes.c2]
address = "192.168.1.4"
[paths]
state = "{state}"
live = "/persist/media"
standby = "/persist/media-standby"
bind = "/data/media"
"""


def test_a_volume_that_this_node_is_only_a_client_of_is_in_no_storage_nodes_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "zippy.lan")
    environ, state = {"STANDFAST_CONFIG_DIR": str(tmp_path)}, tmp_path / "state"
    (tmp_path / "media.toml").write_text(ELSEWHERE.format(state=state))
    with pytest.raises(ConfigError, match="no volume is stored on this node: zippy is none of"):
        load_stored(environ)
    write(tmp_path)
    assert [config.volume for config in load_stored(environ)] == ["data-services"]
    # What this node did as c1 before somebody renamed it isn't that of a client.
    (state / "media").mkdir(parents=True)
    (state / "media" / "node").write_text("c1\n")
    with pytest.raises(ConfigError, match='set node = "c1": that is this node, by its own state'):
        load_stored(environ)
    (tmp_path / "media.toml").write_text("cluster =")
    with pytest.raises(ConfigError, match=r"media\.toml: it is not TOML"):
        load_stored(environ)


def test_one_bad_file_does_not_hide_another(tmp_path: Path) -> None:
    write(tmp_path, top="a1 = 1", name="one")
    write(tmp_path, top="b2 = 1", name="two")
    with pytest.raises(ConfigError) as caught:
        load_all(environ={"STANDFAST_CONFIG_DIR": str(tmp_path)})
    assert len(str(caught.value).splitlines()) == 2


def test_a_slow_lease_of_the_file_is_used(tmp_path: Path) -> None:
    slow = "[lease]\nheartbeat = 4\nrequest_timeout = 4\nlength = 16\nfence = 3\nwait = 21\n"
    assert load(write(tmp_path, tables=slow)).lease == LeaseTiming(
        heartbeat=4.0, request_timeout=4.0, length=16.0, fence=3.0, wait=21.0
    )
