"""The table [nomad] of the configuration."""

# No `from __future__ import annotations`: as texts they would be compiled anew at each start.
from pathlib import Path

from msgspec import Struct

from standfast.config.fields import option


class NomadAccess(Struct, frozen=True, kw_only=True):
    """[nomad]: with this table, even an empty one, the node's meta is set with the role, and its \
jobs are moved; without it Nomad is left alone. Empty values are taken from NOMAD_ADDR, \
_TOKEN, _CACERT, _CLIENT_CERT/KEY, _TLS_SERVER_NAME. Certificates are verified unless \
NOMAD_SKIP_VERIFY is true. The region is NOMAD_REGION, else the agent's own."""

    enabled: bool = True
    """Set the node's meta with the role, and move its jobs: the table is there."""
    address: str = option(
        "",
        "HTTP address of the node's own agent",
        example="127.0.0.1:4646",
        form="endpoint or empty",
    )
    namespace: str = option(
        "*",
        "Jobs of this namespace are looked after; *: of all",
        form="name or *",
    )
    token_file: Path | None = option(
        None, "File (mode 0600) with the ACL token; needed where ACLs are enabled"
    )
    ca_cert: Path | None = option(None, "CA certificate; makes the scheme https")
    client_cert: Path | None = option(
        None, "Client certificate; needed where Nomad verifies clients"
    )
    client_key: Path | None = option(None, "Key of the client certificate")
    tls_server_name: str = option(
        "",
        "Name that the agent's certificate has to have; empty: the address's host",
        example="client.global.nomad",
        form="address or empty",
    )
    request_timeout: float = 5.0
    """A request gives up when Nomad sends nothing for this long, seconds. Not in the file."""
    meta_key: str = option(
        "storage_role",
        "Node meta that jobs are constrained on; each volume needs one of its own",
        form="name",
    )
    on_remount: str = option(
        "restart",
        "What allocations that use the volume's path get when this node mounts it anew; a job's "
        "own meta standfast_on_remount goes before it",
        choices=("restart", "signal", "none"),
    )
    kill_timeout_limit: float = option(
        30.0,
        "A demotion waits at most this long for the kill timeouts of the jobs that it stops; "
        "raise it if they need longer",
        unit="s",
        least=0.0,
        most=3600.0,
    )
