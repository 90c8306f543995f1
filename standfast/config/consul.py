"""The table [consul] of the configuration."""

# No `from __future__ import annotations`: as texts they would be compiled anew at each start.
from pathlib import Path

from msgspec import Struct

from standfast.config.fields import option


class ConsulAccess(Struct, frozen=True, kw_only=True):
    """[consul]: empty values are taken from CONSUL_HTTP_ADDR, _TOKEN, _CACERT, _CLIENT_CERT/KEY."""

    addresses: tuple[str, ...] = option(
        (),
        "HTTP addresses tried in turn; the first is the node's own agent",
        example=["127.0.0.1:8500"],
        form="endpoint",
    )
    token_file: Path | None = option(
        None, "File (mode 0600) with the ACL token; needed where ACLs are enabled"
    )
    ca_cert: Path | None = option(None, "CA certificate; makes the scheme https")
    client_cert: Path | None = option(
        None, "Client certificate; needed where Consul verifies clients"
    )
    client_key: Path | None = option(None, "Key of the client certificate")
    transfer_leadership: bool = option(
        False,
        "The node that serves gives Consul's leadership to another server when it has that as well:"
        " its death then costs no election. Needs Consul 1.15 and a token with operator:write",
    )
    service: str = option(
        "",
        "Name of the service; empty: the volume's name",
        form="name or empty",
    )
    prefix: str = option(
        "standfast",
        "Key prefix, the volume's name is appended; change it if your ACLs require another",
        form="prefix",
    )
