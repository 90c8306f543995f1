"""The fence on the real kernel: both backends, in network namespaces of the test's own.

What packets meet; what callers rely on is in tests/contract/ports/test_fence.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.config.problems import InvalidConfig
from standfast.errors import Refused, StandfastError
from standfast.fence.choice import settle
from standfast.fence.ipset import IpsetFence
from standfast.fence.kernel import KernelFence
from standfast.fence.nftables import NftFence, build_script
from standfast.lease.cutoff import Found, put_back_shut
from standfast.system.clock import monotonic, sleep
from tests.fakes.machine import FakeNfs, World
from tests.support import needs
from tests.support.configs import config_in
from tests.support.fences import claimed
from tests.support.pace import patient

PORT = 2049
SERVER, CLIENT = "192.0.2.1", "192.0.2.2"
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and firewalls"),
    needs.tool("nft", "nftables"),
    needs.tool("ipset", "ipset"),
    needs.tool("iptables-legacy", "iptables"),
    needs.tool("ip", "iproute2"),
]
libc = ctypes.CDLL(None, use_errno=True)


def command(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=patient(20.0))
    assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def enter(namespace: Path) -> None:
    with namespace.open() as handle:
        assert libc.setns(handle.fileno(), 0x40000000) == 0, os.strerror(ctypes.get_errno())


@contextlib.contextmanager
def inside(namespace: Path) -> Iterator[None]:
    """This thread, its new sockets and its children, in another network namespace."""
    with Path("/proc/thread-self/ns/net").open() as home:
        enter(namespace)
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), 0x40000000) == 0


@pytest.fixture
def client_namespace() -> Iterator[Path]:
    """The test runs on the server's side; this is the client's."""
    names = [f"sf-{os.getpid()}-{side}" for side in "sc"]
    for name in names:
        command("ip", "netns", "add", name)
    try:
        server, client = (Path("/run/netns") / name for name in names)
        with inside(server):
            command("ip", "link", "set", "lo", "up")
            command("ip", "link", "add", "e0", "type", "veth", "peer", "e1", "netns", names[1])
            command("ip", "addr", "add", f"{SERVER}/24", "dev", "e0")
            command("ip", "link", "set", "e0", "up")
            with inside(client):
                command("ip", "addr", "add", f"{CLIENT}/24", "dev", "e1")
                command("ip", "link", "set", "e1", "up")
            yield client
    finally:
        for name in names:
            command("ip", "netns", "del", name)


@dataclass
class Firewall:
    """A backend, and how somebody else handles it."""

    fence: KernelFence
    other_volume: Callable[[str], KernelFence]
    span_s: float
    listing: Callable[[], str]
    disturb: dict[str, list[str]]


def nft_firewall(directory: Path) -> Firewall:
    def others() -> str:
        tables = command("nft", "-a", "list", "ruleset").split("\n}\n")
        return "\n".join(t for t in tables if not t.startswith("table inet standfast "))

    command(
        "nft", "add table ip other; add chain ip other c { type filter hook input priority 0; }"
    )
    command("nft", "add rule ip other c tcp dport 22 counter accept")
    command("nft", "add set ip other s { type ipv4_addr; elements = { 10.0.0.1, 10.0.0.7 }; }")
    return Firewall(
        NftFence(PORT, directory, "data"),
        lambda volume: NftFence(PORT, directory, volume),
        1.0,
        others,
        {
            "all flushed": ["nft", "flush ruleset"],
            "table deleted": ["nft", "delete table inet standfast"],
            "rules flushed": ["nft", "flush table inet standfast"],
            "chain deleted": [
                "nft",
                "flush chain inet standfast input; delete chain inet standfast input",
            ],
            "rule before": ["nft", "insert rule inet standfast input tcp dport 2049 accept"],
            "way out deleted": [
                "nft",
                "flush chain inet standfast output; delete chain inet standfast output",
            ],
            "way out let through": ["nft", "insert rule inet standfast output accept"],
        },
    )


def ipset_firewall(directory: Path) -> Firewall:
    def others() -> str:
        rules = [
            command(f"{family}-legacy-save", "-t", "filter").splitlines()
            for family in ("iptables", "ip6tables")
        ]
        kept = [r for lines in rules for r in lines if "standfast" not in r and r[:1] != "#"]
        # Not the counters of what passed meanwhile, at the end of a chain's line.
        same = [re.sub(r" \[\d+:\d+\]$", "", rule) for rule in kept]
        return "\n".join(same) + command("ipset", "save", "other")

    command("ipset", "create", "other", "hash:ip")
    command("ipset", "add", "other", "10.0.0.7")
    command("iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
    return Firewall(
        IpsetFence(PORT, directory, "data"),
        lambda volume: IpsetFence(PORT, directory, volume),
        2.5,
        others,
        {
            "input flushed": ["iptables-legacy", "-F", "INPUT"],
            "all flushed": ["iptables-legacy", "-F"],
            "IPv6 flushed": ["ip6tables-legacy", "-F"],
            "set gone": [
                "sh",
                "-c",
                "for t in iptables ip6tables; do $t-legacy -F; done; ipset destroy standfast",
            ],
            "rule before": [
                *("iptables-legacy", "-I", "INPUT"),
                *("-p", "tcp", "--dport", "2049", "-j", "ACCEPT"),
            ],
            "rule inside": ["iptables-legacy", "-I", "standfast", "-p", "tcp", "-j", "ACCEPT"],
            "way out flushed": ["iptables-legacy", "-F", "OUTPUT"],
            "way out let through": ["ip6tables-legacy", "-I", "OUTPUT", "-j", "ACCEPT"],
        },
    )


BACKENDS = {"nft": nft_firewall, "ipset": ipset_firewall}
DISTURBANCES = [
    *(("nft", d) for d in ("all flushed", "table deleted", "rules flushed", "chain deleted")),
    *(("nft", d) for d in ("rule before", "way out deleted", "way out let through")),
    *(("ipset", d) for d in ("input flushed", "all flushed", "IPv6 flushed", "set gone")),
    *(("ipset", d) for d in ("rule before", "rule inside")),
    *(("ipset", d) for d in ("way out flushed", "way out let through")),
]


@pytest.fixture(params=BACKENDS)
def firewall(request: pytest.FixtureRequest, client_namespace: Path, tmp_path: Path) -> Firewall:
    return BACKENDS[request.param](tmp_path / "fence")


@pytest.fixture
def echo_server(client_namespace: Path) -> Iterator[None]:
    listener = socket.create_server(("0.0.0.0", PORT))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1000):
                connection.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def connect(namespace: Path, timeout_s: float | None = None) -> socket.socket:
    with inside(namespace):
        return socket.create_connection((SERVER, PORT), timeout_s or patient(5.0))


def answers(connection: socket.socket, within_s: float) -> bool:
    connection.settimeout(within_s)
    try:
        connection.sendall(b"x")
        return connection.recv(1000) != b""
    except TimeoutError:
        return False


def arm(fence: KernelFence, seconds: float) -> bool:
    return claimed(fence).arm(monotonic() + seconds, monotonic() + patient(5.0))


def test_an_established_connection_is_cut_in_time_and_goes_on_after_a_refresh(
    firewall: Firewall, client_namespace: Path, echo_server: None
) -> None:
    fence = firewall.fence
    fence.ensure_closed()
    arm(fence, 20)
    with connect(client_namespace) as connection:
        assert answers(connection, patient(5.0))
        arm(fence, firewall.span_s)
        # The permit's time runs from the moment the kernel takes it: that is over by now.
        shut_by = monotonic() + firewall.span_s
        sleep(shut_by - monotonic() + 0.02)
        assert not answers(connection, 0.4)
        assert fence.state().open_for_s == 0
        assert arm(fence, 20) is False
        connection.settimeout(patient(20.0))
        assert connection.recv(1000), "what was sent while shut arrives by itself"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_an_answer_to_a_request_from_before_the_end_is_not_given_after_it(
    firewall: Firewall, client_namespace: Path, kind: socket.SocketKind
) -> None:
    """A server that is slow: what it acknowledges then is not known to a successor."""
    fence = firewall.fence
    fence.ensure_closed()
    arm(fence, 20)
    with contextlib.ExitStack() as sockets:
        server = sockets.enter_context(socket.socket(socket.AF_INET, kind))
        server.bind(("0.0.0.0", PORT))
        with inside(client_namespace):
            client = sockets.enter_context(socket.socket(socket.AF_INET, kind))
        client.settimeout(patient(5.0))
        if kind is socket.SOCK_STREAM:
            server.listen()
            client.connect((SERVER, PORT))
            server, _ = server.accept()
            sockets.enter_context(server)
        else:
            client.connect((SERVER, PORT))
        client.send(b"write this")
        request, address = server.recvfrom(100)
        assert request == b"write this"
        arm(fence, firewall.span_s)
        sleep(firewall.span_s + 0.02)
        assert fence.state().open_for_s == 0
        if kind is socket.SOCK_STREAM:
            server.send(b"done")
        else:
            with contextlib.suppress(PermissionError):  # how the kernel tells of a drop
                server.sendto(b"done", address)
        client.settimeout(1.0)
        with pytest.raises(TimeoutError):
            client.recv(100)


def test_a_server_that_ends_while_the_port_is_shut_says_nothing_to_its_clients(
    firewall: Firewall, client_namespace: Path, echo_server: None
) -> None:
    """Its connections' last packets would be taken for a server that is there."""
    fence = firewall.fence
    fence.ensure_closed()
    arm(fence, 20)
    with connect(client_namespace) as connection:
        assert answers(connection, patient(5.0))
        fence.ensure_closed()
        command("ss", "-K", "-t", "-n", "-H", "state", "connected", "sport", "=", f":{PORT}")
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(100)


def test_this_machine_reaches_the_servers_of_others_while_its_own_port_is_shut(
    firewall: Firewall, client_namespace: Path
) -> None:
    """A standby is a client of the primary."""
    firewall.fence.ensure_closed()
    with inside(client_namespace):
        listener = socket.create_server((CLIENT, PORT))
    with listener, socket.create_connection((CLIENT, PORT), patient(5.0)) as connection:
        other, _ = listener.accept()
        with other:
            other.send(b"hello")
            assert connection.recv(100) == b"hello"


def test_a_shut_port_answers_nobody_but_this_machine(
    firewall: Firewall, client_namespace: Path, echo_server: None
) -> None:
    firewall.fence.ensure_closed()
    with pytest.raises(TimeoutError):
        connect(client_namespace, 0.3)
    for address in ("127.0.0.1", SERVER):
        with socket.create_connection((address, PORT), patient(5.0)) as connection:
            assert answers(connection, patient(5.0))


def test_nothing_else_of_the_firewall_changes(firewall: Firewall) -> None:
    before = firewall.listing()
    assert "22" in before
    assert "10.0.0.7" in before
    firewall.fence.ensure_closed()
    arm(firewall.fence, 5)
    arm(firewall.fence, 3)
    firewall.fence.ensure_closed()
    assert firewall.listing() == before


@pytest.mark.parametrize(("backend", "how"), DISTURBANCES)
def test_a_flush_by_others_is_noticed_and_put_right(
    client_namespace: Path, tmp_path: Path, backend: str, how: str
) -> None:
    firewall = BACKENDS[backend](tmp_path)
    fence = firewall.fence
    fence.ensure_closed()
    arm(fence, 20)
    assert fence.state().in_place
    command(*firewall.disturb[how])
    assert not fence.state().in_place
    assert arm(fence, 20) is True
    state = fence.state()
    assert state.in_place
    assert state.open_for_s > 15
    assert arm(fence, 20) is False


def test_arming_where_there_are_no_rules_makes_them(
    firewall: Firewall, client_namespace: Path, echo_server: None
) -> None:
    assert not firewall.fence.state().in_place
    assert arm(firewall.fence, firewall.span_s) is True
    assert firewall.fence.state().in_place
    sleep(firewall.span_s + 0.02)
    with pytest.raises(TimeoutError):
        connect(client_namespace, 0.3)


def test_when_the_lease_of_one_volume_ends_all_end_though_another_goes_on(
    firewall: Firewall, client_namespace: Path, echo_server: None
) -> None:
    """Its process is gone; the other's heartbeats keep coming."""
    music = firewall.other_volume("music")
    music.claim()
    arm(music, 50)
    firewall.fence.claim()
    ends = monotonic() + firewall.span_s
    firewall.fence.arm(ends, monotonic() + patient(5.0))
    with connect(client_namespace) as connection:
        while monotonic() < ends:
            with contextlib.suppress(StandfastError):
                arm(music, 50)
        sleep(patient(0.3))  # the last permit's time began when the kernel took it
        assert music.state().open_for_s == 0
        assert not answers(connection, 0.4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rules_of_an_older_version_are_replaced(
    client_namespace: Path, tmp_path: Path, backend: str
) -> None:
    """They let answers out. The upgraded process makes them anew and opens the port again."""
    fence = BACKENDS[backend](tmp_path).fence
    if backend == "nft":
        old = build_script("standfast", PORT)
        command("nft", old[: old.index("chain output")] + "}")
        command("nft", "add element inet standfast open { 2049 timeout 20s }")
    else:
        fence.ensure_closed()
        arm(fence, 20)
        for family in ("iptables", "ip6tables"):
            command(f"{family}-legacy", "-F", "OUTPUT")
            command(f"{family}-legacy", "-F", "standfast-out")
            command(f"{family}-legacy", "-X", "standfast-out")
    assert not fence.state().in_place
    assert arm(fence, 20) is True
    assert fence.state().in_place


@pytest.mark.parametrize(("backend", "how"), DISTURBANCES)
def test_a_flush_after_the_end_of_the_lease_opens_nothing_for_longer_than_a_look(
    client_namespace: Path, tmp_path: Path, backend: str, how: str, echo_server: None
) -> None:
    """The lease process looks at it again and again, and so does the agent by itself."""
    firewall = BACKENDS[backend](tmp_path)
    fence = firewall.fence
    arm(fence, firewall.span_s)
    with connect(client_namespace) as connection:
        assert answers(connection, patient(5.0))
        sleep(firewall.span_s + 0.02)
        for _ in range(2):
            command(*firewall.disturb[how])
            assert put_back_shut(fence) is Found.FLUSHED
            assert not answers(connection, 0.3)
        assert put_back_shut(fence) is Found.SHUT


KINDS = {"nft": NftFence, "ipset": IpsetFence}
OTHER_PORT = 20490
CHANGES = [
    *(("nft", "nft", OTHER_PORT), ("ipset", "ipset", OTHER_PORT)),
    *(("nft", "ipset", PORT), ("ipset", "nft", PORT), ("nft", "ipset", OTHER_PORT)),
]


def began(directory: Path, backend: str, port: int, nfs: FakeNfs) -> KernelFence:
    """What a process does that begins with this configuration on the node."""
    config = config_in(directory)
    fence = KINDS[backend](port, config.paths.run / "fence", config.volume)
    settle(config, fence, nfs)
    fence.ensure_closed()
    return fence


@pytest.mark.parametrize(("backend", "other", "port"), CHANGES)
def test_what_is_configured_anew_takes_no_rules_from_a_server_that_runs(
    client_namespace: Path,
    tmp_path: Path,
    backend: str,
    other: str,
    port: int,
    echo_server: None,
) -> None:
    """It listens at its port on and on: what shuts it there at the lease's end has to stay."""
    nfs = FakeNfs(World(), running=True)
    fence = began(tmp_path, backend, PORT, nfs)
    span_s = 2.5
    arm(fence, span_s)
    shut_by = monotonic() + span_s  # the permit's time began when the kernel took it, before this
    with connect(client_namespace) as connection:
        with pytest.raises(InvalidConfig, match="data-services is exported here"):
            began(tmp_path, other, port, nfs)
        assert fence.state().in_place
        sleep(shut_by - monotonic() + 0.02)
        assert not answers(connection, 0.4)
        # Nor does what it was armed with drop the port for good.
        assert arm(fence, 20) is False
        connection.settimeout(patient(20.0))
        assert connection.recv(1000)


@pytest.mark.parametrize(("backend", "other", "port"), CHANGES)
def test_what_is_configured_anew_where_nothing_is_served_is_the_only_fence(
    client_namespace: Path,
    tmp_path: Path,
    backend: str,
    other: str,
    port: int,
    echo_server: None,
) -> None:
    """Rules of another backend that nobody renews drop the port for good."""
    nfs = FakeNfs(World())
    old = began(tmp_path, backend, PORT, nfs)
    arm(old, 20)
    old.release()
    new = began(tmp_path, other, port, nfs)
    assert (new.state().in_place, new.state().open_for_s) == (True, 0.0)
    with pytest.raises(Refused):
        arm(old, 20)
    if port == PORT:
        with pytest.raises(TimeoutError):
            connect(client_namespace, 0.3)
    assert arm(new, 20) is False
    with connect(client_namespace) as connection:  # at the port of before
        assert answers(connection, patient(5.0))
    new.release()
    back = began(tmp_path, backend, PORT, nfs)
    assert (back.state().in_place, back.state().open_for_s) == (True, 0.0)
    if backend != other:
        assert not new.state().in_place
        left = command("nft", "list", "ruleset") + command("ipset", "save")
        left += command("iptables-legacy", "-S") + command("ip6tables-legacy", "-S")
        made_by_ipset = "create standfast" in left and "-A standfast" in left
        assert made_by_ipset is (backend == "ipset")
        assert ("table inet standfast" in left) is (backend == "nft")


def shut_by_hand(fence: KernelFence) -> None:
    if isinstance(fence, NftFence):
        command("nft", "flush set inet standfast open")
    else:
        command("ipset", "flush", "standfast")


# A process without threads: one forked from a test run with threads may inherit a locked lock.
ARMER = """
import os, sys
from pathlib import Path
from standfast.fence.nftables import NftFence
from standfast.fence.ipset import IpsetFence
backend = {"NftFence": NftFence, "IpsetFence": IpsetFence}[sys.argv[1]]
fence = backend(int(sys.argv[2]), Path(sys.argv[3]), "data")
for line in sys.stdin:
    latest = float(line)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        try:
            fence.arm(latest + 60, latest)
        finally:
            os._exit(0)
    try:
        os.setpgid(pid, pid)
    except OSError:
        pass
    print(pid, flush=True)
    sys.stdin.readline()
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


def thaw(pid: int) -> None:
    """Let a process, its group and its children go on; a child may have left the group while it was
    being stopped, between its fork and its program."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            thaw(int(child))
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            send(pid, signal.SIGCONT)


@pytest.mark.parametrize("rounds", [30, pytest.param(300, marks=pytest.mark.torture)])
def test_frozen_at_a_random_moment_and_thawed_late_it_opens_nothing(
    firewall: Firewall, tmp_path: Path, rounds: int
) -> None:
    """Whatever opened the port in time is undone, then the process is let go."""
    fence = firewall.fence
    fence.ensure_closed()
    fence.claim()
    chance = random.Random(7)
    in_time = late = 0
    took_s: list[float] = []
    argv = [sys.executable, "-c", ARMER, type(fence).__name__, str(PORT), str(tmp_path / "fence")]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as armer:
        assert armer.stdin is not None and armer.stdout is not None
        for _ in range(3):  # how long it takes here when it isn't frozen
            begun = monotonic()
            print(f"{begun + patient(5.0)}\nreap it", file=armer.stdin, flush=True)
            armer.stdout.readline()
            assert armer.stdout.readline() == "ended\n"
            took_s.append(monotonic() - begun)
            shut_by_hand(fence)
        typical_s = statistics.median(took_s)
        for _ in range(rounds):
            latest = monotonic() + 5 * typical_s
            print(latest, file=armer.stdin, flush=True)
            pid = int(armer.stdout.readline())
            sleep(chance.uniform(0, 1.5 * typical_s))
            os.killpg(pid, signal.SIGSTOP)
            sleep(latest + 0.005 - monotonic())
            in_time += fence.state().open_for_s > 0
            shut_by_hand(fence)
            thaw(pid)
            print("reap it", file=armer.stdin, flush=True)
            assert armer.stdout.readline() == "ended\n"
            late += fence.state().open_for_s > 0
            shut_by_hand(fence)
        armer.stdin.close()
    assert late == 0
    assert 0 < in_time < rounds, "the freezes were all before or all after the arming"
