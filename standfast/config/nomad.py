"""The table [nomad] of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from standfast.config.fields import option


@dataclass(frozen=True, slots=True, kw_only=True)
class NomadAccess:
    """[nomad]: without this table Nomad is left alone. Empty values are taken from NOMAD_ADDR, \
_REGION, _TOKEN, _CACERT, _CLIENT_CERT/KEY, _TLS_SERVER_NAME. Certificates are verified unless \
NOMAD_SKIP_VERIFY is true."""

    enabled: bool = option(True, "Set the node's meta with the role, and move its jobs")
    address: str = option(
        "",
        "HTTP address of the node's own agent",
        example="127.0.0.1:4646",
        form="endpoint or empty",
    )
    region: str = option("", "Region; empty: the agent's own", form="name or empty")
    namespace: str = option(
        "*", "Jobs of this namespace are looked after; *: of all", form="name or *"
    )
    token_file: Path | None = option(None, "File (mode 0600) with the ACL token")
    ca_cert: Path | None = option(None, "CA certificate; makes the scheme https")
    client_cert: Path | None = option(None, "Client certificate")
    client_key: Path | None = option(None, "Key of the client certificate")
    tls_server_name: str = option(
        "",
        "Name that the agent's certificate has to have; empty: the address's host",
        example="client.global.nomad",
        form="address or empty",
    )
    request_timeout: float = option(
        5.0, "A request gives up when Nomad sends nothing for this long", unit="s", least=0.1
    )
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
        "A demotion waits at most this long for the kill timeouts of the jobs that it stops",
        unit="s",
        least=0.0,
        most=3600.0,
    )
