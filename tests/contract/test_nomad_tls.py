"""A real Nomad that speaks TLS, with certificates as its own tool makes them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.errors import NomadError, NomadOutcome
from standfast.nomad.gateway import NomadAgent, Tls
from tests.support.nomad_clusters import SERVER, START_S, RealMachines, nomad_binary
from tests.support.pace import patient
from tests.support.waiting import wait_for

pytestmark = pytest.mark.xdist_group("a real Nomad")


@dataclass(frozen=True)
class SecuredNomad:
    address: str
    directory: Path

    def tls(self, **changes: object) -> Tls:
        made: dict[str, object] = {
            "ca_cert": self.directory / "nomad-agent-ca.pem",
            "client_cert": self.directory / "global-client-nomad.pem",
            "client_key": self.directory / "global-client-nomad-key.pem",
            "server_name": "server.global.nomad",
            **changes,
        }
        return Tls(**made)  # type: ignore[arg-type]

    def leader(self, tls: Tls, address: str = "") -> str:
        return NomadAgent(address or self.address, tls=tls, timeout_s=patient(10.0)).leader()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredNomad]:
    directory = tmp_path_factory.mktemp("nomad-tls")
    binary = nomad_binary()
    for words in (["ca", "create"], ["cert", "create", "-server"], ["cert", "create", "-client"]):
        subprocess.run(
            [binary, "tls", *words],
            cwd=directory,
            check=True,
            capture_output=True,
            timeout=patient(60.0),
        )
    settings = {
        "acl": {"enabled": False},
        "tls": {
            "http": True,
            "rpc": True,
            "ca_file": str(directory / "nomad-agent-ca.pem"),
            "cert_file": str(directory / "global-server-nomad.pem"),
            "key_file": str(directory / "global-server-nomad-key.pem"),
            "verify_https_client": True,
            "verify_server_hostname": True,
        },
    }
    machines = RealMachines(binary, directory)
    machines.configure(settings)
    made = SecuredNomad(machines.address(SERVER), directory)
    try:
        machines.launch(SERVER)
        _wait_until_it_leads(made, machines)
        yield made
    finally:
        machines.end()


def _wait_until_it_leads(secured: SecuredNomad, machines: RealMachines) -> None:
    def leads() -> bool:
        try:
            return bool(secured.leader(secured.tls()))
        except NomadError as error:
            assert machines.agents[SERVER].poll() is None, error
            return False

    wait_for(leads, START_S, "the server leads", 0.1)


def outcome_of(secured: SecuredNomad, tls: Tls, address: str = "") -> tuple[NomadOutcome, str]:
    with pytest.raises(NomadError) as caught:
        secured.leader(tls, address)
    return caught.value.outcome, str(caught.value)


def test_the_certificates_of_nomads_own_tool_are_enough(secured: SecuredNomad) -> None:
    assert secured.leader(secured.tls()).startswith("127.0.0.1:")
    # The tool puts localhost and 127.0.0.1 into each of them.
    assert secured.leader(secured.tls(server_name=""))


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"ca_cert": None}, NomadOutcome.UNREACHABLE),
        ({"server_name": "client.global.nomad"}, NomadOutcome.UNREACHABLE),
        ({"client_cert": None, "client_key": None}, None),
    ],
    ids=["no CA", "another name", "no client certificate"],
)
def test_what_is_not_proven_is_not_believed(
    secured: SecuredNomad, changes: dict[str, object], outcome: NomadOutcome | None
) -> None:
    got, text = outcome_of(secured, secured.tls(**changes), f"https://{secured.address}")
    # TLS 1.3: the client's certificate is refused after the handshake.
    assert got is outcome or (outcome is None and got is not NomadOutcome.TIMEOUT), text


def test_plain_http_to_a_tls_port_is_no_answer_of_nomad(secured: SecuredNomad) -> None:
    outcome, _ = outcome_of(secured, Tls(), f"http://{secured.address}")
    assert outcome in (NomadOutcome.BAD_REQUEST, NomadOutcome.GARBLED)
