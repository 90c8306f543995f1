"""One NULL call to an NFS server over TCP (ONC RPC, RFC 5531): does anybody answer there?

A listening socket proves nothing: the kernel accepts connections for a server that is stuck.
"""

from __future__ import annotations

import os
import socket
import struct

from standfast.system.clock import Deadline

NFS_PROGRAM = 100003
NFS_VERSION = 4
_LAST_FRAGMENT = 0x80000000
_MAX_REPLY_BYTES = 1024
_REJECTED = {1: "does not serve NFS", 2: "does not serve NFSv4"}


def null_call(address: str, port: int, deadline: Deadline) -> str | None:
    """Returns None when the NFSv4 server at this address answered, else why that can't be said."""
    where = f"the NFS server at {address}:{port}"
    left_s = deadline.remaining_s()
    if left_s <= 0:
        return f"no time left to ask {where}"
    try:
        with socket.create_connection((address, port), left_s) as connection:
            xid = os.urandom(4)
            # CALL (0), RPC version 2, procedure 0, no credentials, no verifier.
            call = xid + struct.pack(">9I", 0, 2, NFS_PROGRAM, NFS_VERSION, 0, 0, 0, 0, 0)
            connection.sendall(struct.pack(">I", _LAST_FRAGMENT | len(call)) + call)
            (mark,) = struct.unpack(">I", _receive(connection, 4, deadline))
            length = mark & ~_LAST_FRAGMENT
            if not mark & _LAST_FRAGMENT or not 24 <= length <= _MAX_REPLY_BYTES:
                return f"{where} answered something else than RPC"
            return _verdict(where, xid, _receive(connection, length, deadline))
    except TimeoutError:
        return f"{where} does not answer in time"
    except OSError as error:
        return f"{where} can't be reached: {error.strerror or error}"


def _receive(connection: socket.socket, length: int, deadline: Deadline) -> bytes:
    """Reads exactly `length` bytes by the deadline, also from a server that drips them."""
    data = b""
    while len(data) < length:
        left_s = deadline.remaining_s()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        piece = connection.recv(length - len(data))
        if not piece:
            raise OSError("it closed the connection")
        data += piece
    return data


def _verdict(where: str, xid: bytes, reply: bytes) -> str | None:
    # xid, REPLY (1), accepted (0), verifier's flavour and length, accept_stat
    kind, denied, _flavour, verifier = struct.unpack(">4I", reply[4:20])
    if reply[:4] != xid or kind != 1:
        return f"{where} answered something else than what was asked"
    if denied:
        return f"{where} denied the call"
    end = 20 + (verifier + 3) // 4 * 4
    if len(reply) < end + 4:
        return f"{where} answered something else than RPC"
    (status,) = struct.unpack(">I", reply[end : end + 4])
    return None if status == 0 else f"{where} {_REJECTED.get(status, f'failed (RPC {status})')}"
