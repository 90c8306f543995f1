"""The gateway to Nomad: everything that Standfast asks of it, with names for what can go wrong.

Invariants: each request asks the node's own agent, which passes it on to the servers, and gives up
when nothing comes within the timeout. An answer is believed only in the shape that Nomad sends. No
write is repeated here. The token appears in no message.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from standfast.config.model import Config
from standfast.consul.access import check_token, env_path, read_token
from standfast.consul.http import Endpoint, tls_context
from standfast.errors import NomadError, NomadOutcome
from standfast.nomad import values as wire
from standfast.nomad.ports import Agent, Allocation, CsiVolume, Evaluation, Job, LocalMeta, Node
from standfast.system.clock import Deadline
from standfast.system.environment import TAKEN

if TYPE_CHECKING:
    from standfast.nomad.client import Access, Library

T = TypeVar("T")
DEFAULT_ADDRESS = "127.0.0.1:4646"
ALL = "*"


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for TLS; `server_name` empty: the address's host. Unverified only when told."""

    ca_cert: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    server_name: str = ""
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        made = tls_context(self.ca_cert, self.client_cert, self.client_key, table="nomad")
        if not self.verify:
            made.check_hostname = False
            made.verify_mode = ssl.CERT_NONE
        return made


class NomadAgent:
    """Nomad through one agent; meets `standfast.nomad.ports.NomadGateway`. Thread-safe.

    Every call raises NomadError. `timeout_s`, in seconds, is for each of its requests.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token: str = "",
        region: str = "",
        namespace: str = ALL,
        tls: Tls | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        tls = tls or Tls()
        scheme = "https" if tls.ca_cert or tls.client_cert else "http"
        self._endpoint = Endpoint.parse(
            address, default_scheme=scheme, whose="Nomad", server_name=tls.server_name
        )
        check_token(token, "Nomad")
        self._token = token
        self._region = region
        self._namespace = namespace
        self._tls = tls.context() if self._endpoint.scheme == "https" else None
        self.timeout_s = timeout_s

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        timeout_s: float | None = None,
        environ: Mapping[str, str] = TAKEN,
    ) -> NomadAgent:
        """Reads [nomad] of the configuration; empty values come from NOMAD_*, else defaults.

        ConfigError for unusable values or files. NOMAD_SKIP_VERIFY is the only way to leave the
        agent's certificate unverified.
        """
        access = config.nomad
        token = environ.get("NOMAD_TOKEN", "")
        if access.token_file:
            token = read_token(access.token_file, "nomad.token_file", "NOMAD_TOKEN")
        skip = environ.get("NOMAD_SKIP_VERIFY", "").lower() in ("1", "t", "true")
        return cls(
            access.address or environ.get("NOMAD_ADDR") or DEFAULT_ADDRESS,
            token=token,
            region=environ.get("NOMAD_REGION", ""),
            namespace=access.namespace,
            tls=Tls(
                access.ca_cert or env_path(environ, "NOMAD_CACERT"),
                access.client_cert or env_path(environ, "NOMAD_CLIENT_CERT"),
                access.client_key or env_path(environ, "NOMAD_CLIENT_KEY"),
                access.tls_server_name or environ.get("NOMAD_TLS_SERVER_NAME", ""),
                not skip,
            ),
            timeout_s=access.request_timeout if timeout_s is None else timeout_s,
        )

    # The own node and its agent

    def agent(self) -> Agent:
        return self._read(
            "reading the agent's own state",
            lambda nomad: wire.parse_agent(nomad.agent.get_agent()),
        )

    def own_node(self) -> Node:
        agent = self.agent()
        if not agent.node_id:
            raise NomadError(
                f"Nomad at {self._endpoint} runs no client, so this node has no meta and no jobs. "
                "Point nomad.address at the agent of this node's client.",
                NomadOutcome.NOT_FOUND,
            )
        return self.node(agent.node_id)

    def local_meta(self) -> LocalMeta:
        return self._read(
            "reading this node's meta",
            lambda nomad: wire.parse_local_meta(nomad.metadata.read()),
        )

    def set_meta(self, key: str, value: str | None, *, node_id: str = "") -> LocalMeta:
        whose = f"the meta {key} of node {node_id}" if node_id else f"this node's meta {key}"
        what = f"unsetting {whose}" if value is None else f"setting {whose} to {value}"

        def call(nomad: Library) -> LocalMeta:
            made = wire.parse_local_meta(nomad.metadata.apply(key, value, node_id))
            if made.meta.get(key) != value:
                raise ValueError(f"{key} is {made.meta.get(key)!r} after that")
            return made

        return self._write(what, call)

    # What the servers know

    def leader(self) -> str:
        return self._read(
            "reading who leads",
            lambda nomad: wire.parse_leader(nomad.status.leader.get_leader()),
        )

    def node(self, node_id: str) -> Node:
        return self._read(
            f"reading the node {node_id}",
            lambda nomad: wire.parse_node(nomad.node.get_node(_part(node_id))),
        )

    def nodes(self, names: Collection[str] | None = None) -> tuple[Node, ...]:
        listed = self._read(
            "reading the list of nodes",
            lambda nomad: wire.parse_node_names(nomad.nodes.get_nodes()),
        )
        return tuple(
            self.node(node_id) for name, node_id in listed if names is None or name in names
        )

    def allocations(self, node_id: str) -> tuple[Allocation, ...]:
        allocations = self._read(
            f"reading the allocations of node {node_id}",
            lambda nomad: wire.parse_allocations(nomad.node.get_allocations(_part(node_id))),
        )
        return tuple(each for each in allocations if self._namespace in (ALL, each.namespace))

    def allocation(self, alloc_id: str) -> Allocation:
        return self._read(
            f"reading the allocation {alloc_id}",
            lambda nomad: wire.parse_allocation(nomad.allocation.get_allocation(_part(alloc_id))),
        )

    def jobs(self) -> tuple[Job, ...]:
        return self._read(
            "reading the list of jobs",
            lambda nomad: wire.parse_jobs(nomad.jobs.get_jobs(namespace=self._namespace)),
        )

    def job(self, namespace: str, job_id: str) -> Mapping[str, Any]:
        return self._read(
            f"reading the job {job_id}",
            lambda nomad: wire.parse_job(nomad.job.get_job(_part(job_id), namespace=namespace)),
        )

    def job_allocations(self, namespace: str, job_id: str) -> tuple[Allocation, ...]:
        def call(nomad: Library) -> tuple[Allocation, ...]:
            return wire.parse_allocations(
                nomad.job.get_allocations(_part(job_id), namespace=namespace)
            )

        return self._read(f"reading the allocations of job {job_id}", call)

    def evaluation(self, eval_id: str, *, namespace: str = "default") -> Evaluation:
        return self._read(
            f"reading the evaluation {eval_id}",
            lambda nomad: wire.parse_evaluation(nomad.evaluation.read(_part(eval_id), namespace)),
        )

    def csi_volume(self, namespace: str, volume_id: str) -> CsiVolume:
        def call(nomad: Library) -> CsiVolume:
            return wire.parse_csi_volume(nomad.csi_volume.read(_part(volume_id), namespace))

        return self._read(f"reading the CSI volume {volume_id}", call)

    # What changes them

    def set_eligible(self, node_id: str, eligible: bool) -> None:
        word = "eligible" if eligible else "ineligible"
        # With its `ineligible=False` the library makes a node ineligible.
        self._write(
            f"making the node {node_id} {word}",
            lambda nomad: wire.check_done(
                nomad.node.eligible_node(_part(node_id), eligible=eligible)
            ),
        )

    def stop(self, alloc_id: str) -> str:
        return self._write(
            f"stopping the allocation {alloc_id}",
            lambda nomad: wire.parse_stopped(nomad.allocation.stop_allocation(_part(alloc_id))),
        )

    def restart(self, alloc_id: str, *, deadline: Deadline | None = None) -> None:
        self._write(
            f"restarting the allocation {alloc_id}",
            lambda nomad: wire.check_done(nomad.client_allocation.restart_all(_part(alloc_id))),
            deadline,
        )

    def signal(
        self, alloc_id: str, task: str | None, signal: str, *, deadline: Deadline | None = None
    ) -> None:
        self._write(
            f"sending {signal} to the allocation {alloc_id}",
            lambda nomad: wire.check_done(
                nomad.client_allocation.signal(_part(alloc_id), task or "", signal)
            ),
            deadline,
        )

    # Asking

    def _read(self, what: str, call: Callable[[Library], T]) -> T:
        return self._ask(what, call, self.timeout_s, write=False)

    def _write(
        self, what: str, call: Callable[[Library], T], deadline: Deadline | None = None
    ) -> T:
        if deadline is None:
            return self._ask(what, call, self.timeout_s, write=True)
        left_s = deadline.remaining_s()
        if left_s <= 0:
            text = f"Nomad at {self._endpoint}, {what}: the deadline had passed before."
            raise NomadError(text, NomadOutcome.TIMEOUT)
        return self._ask(what, call, left_s, write=True)

    def _ask(self, what: str, call: Callable[[Library], T], timeout_s: float, *, write: bool) -> T:
        # The library costs 137 ms to import: only who asks Nomad something pays for it.
        from standfast.nomad.client import Question, ask

        return ask(self._access(), Question(what, timeout_s, write), call)

    def _access(self) -> Access:
        from standfast.nomad.client import Access

        return Access(self._endpoint, self._token, self._region, self._tls)


def _part(text: str) -> str:
    """Quotes an id for a path: ids of dispatched and periodic jobs have slashes in them."""
    if not text or text in (".", ".."):
        raise NomadError(f"Nomad: {text!r} is not an id.", NomadOutcome.BAD_REQUEST)
    return quote(text, safe="")
