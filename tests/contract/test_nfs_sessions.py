"""Connections of the NFS port are ended by the kernel, in a network namespace of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import needs
from tests.support.pace import patient

# A listener and two clients on other ports than the one whose connections are to go.
SCRIPT = """
import socket, sys
from standfast.nfs.kernel import close_sessions

def pair(port):
    server = socket.create_server(("127.0.0.1", port))
    client = socket.create_connection(("127.0.0.1", port))
    return server, client, server.accept()[0]

def ends(client):
    client.settimeout(float(sys.argv[1]))
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False

nfs, other = pair(2049), pair(2050)
close_sessions(2049)
assert ends(nfs[1]), "a client of the port is still connected"
other[2].sendall(b"x")
assert not ends(other[1]), "a client of another port was cut off"
socket.create_connection(("127.0.0.1", 2049), timeout=float(sys.argv[1]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a network namespace")
@needs.tool("ss", "iproute2")
def test_the_clients_of_the_nfs_port_are_disconnected_and_nobody_else() -> None:
    inside = 'ip link set lo up && exec "$0" -c "$1" "$2"'
    done = subprocess.run(
        ["unshare", "-n", "sh", "-ec", inside, sys.executable, SCRIPT, str(patient(5.0))],
        capture_output=True,
        text=True,
        timeout=patient(30.0),
    )
    assert done.returncode == 0, done.stderr
