"""A program that answers NFS' NULL call and nothing else, for nodes that have only python3."""

from __future__ import annotations

SOURCE = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print(flush=True)
while True:
    connection, _ = server.accept()
    with connection:
        call = connection.recv(999)
        if call:
            accepted = bytes([0, 0, 0, 1]) + bytes(16)
            connection.sendall(bytes([128, 0, 0, 24]) + call[4:8] + accepted)
"""
"""Arguments: address ("" for all) and port; a line when it listens."""
BESIDE_THE_FENCE = "127.0.0.77"
"""An address that a node reaches in itself, whatever its fence shuts: an entry of the service there
is another server's to it."""
