"""One NULL call to an NFS server: does anybody answer there?

A listening socket proves nothing: the kernel accepts connections for a server that is stuck. Nor
does an answer prove that a client would be served: see `as_client`.
"""

from __future__ import annotations

from standfast.errors import StandfastError
from standfast.nfs.rpc import NULL, connected
from standfast.system.clock import Deadline


def null_call(address: str, port: int, deadline: Deadline) -> str | None:
    """Returns None when the NFSv4 server at this address answered, else why that can't be said."""
    try:
        with connected(address, port, deadline) as server:
            server.call(NULL)
    except StandfastError as error:
        return str(error)
    return None
