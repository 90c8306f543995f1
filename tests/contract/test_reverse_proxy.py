"""The examples of docs/reverse-proxy.md, as they stand there, before a real exporter."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import re
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from standfast.config.load import load
from tests.support import needs
from tests.support.checkout import CHECKOUT
from tests.support.consul_clusters import free_ports
from tests.support.exporter import exporting
from tests.support.pace import patient
from tests.support.terminal import write_config
from tests.support.waiting import wait_for

PAGE = (CHECKOUT / "docs/reverse-proxy.md").read_text()
# Of "secret", as `htpasswd -B` writes it.
HASH = "$2y$05$/Nvim6wGGnK259Gm7sob4OlP/LsDm6.3jVTNZbbKZMx7lSVOtLYF2"
RIGHT, WRONG = (
    {"Authorization": "Basic " + base64.b64encode(b"prometheus:" + password).decode()}
    for password in (b"secret", b"guess")
)


def example(heading: str) -> str:
    """The first block of code below the heading."""
    _, _, section = PAGE.partition(f"\n## {heading}\n")
    block = re.search(r"(?m)^    .*\n(?:(?:    .*)?\n)*", section)
    assert block is not None
    return block[0]


@dataclass(frozen=True)
class ProxyPlace:
    """What stands for the example's addresses and files in a test."""

    directory: Path
    port: int
    behind: int

    @property
    def certificate(self) -> Path:
        return self.directory / "exporter.pem"

    def put_into(self, text: str) -> str:
        """The example with this place's addresses and files; it has to name all of them."""
        for old, new in (
            ("127.0.0.1:9756", f"127.0.0.1:{self.behind}"),
            ("192.168.1.2:9756", f"127.0.0.1:{self.port}"),
            ("/etc/standfast/exporter.", f"{self.directory}/exporter."),
        ):
            assert old in text
            text = text.replace(old, new)
        return text.replace("192.168.1.2", "127.0.0.1")

    def make_certificate(self) -> None:
        """One that signed itself, for 127.0.0.1."""
        key = self.directory / "exporter.key"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
                *("-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=node"),
                *("-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", str(key), "-out", str(self.certificate)),
            ],
            check=True,
            capture_output=True,
        )

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Status and body, over TLS that is verified."""
        trusted = ssl.create_default_context(cafile=str(self.certificate))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=patient(20.0), context=trusted
        )
        with contextlib.closing(connection):
            connection.request("GET", path, headers=dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read().decode()


def nginx(place: ProxyPlace) -> Sequence[str]:
    """The command that serves nginx's example."""
    users = place.directory / "exporter.users"
    users.write_text(f"prometheus:{HASH}\n")
    place.directory.chmod(0o755)
    kept = "".join(
        f"{name}_temp_path {place.directory}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = place.directory / "nginx.conf"
    user = "" if os.getuid() else "user root;"
    path.write_text(
        f"daemon off; pid {place.directory}/pid; error_log stderr; {user} events {{}}\n"
        f"http {{ access_log off; {kept}\n{place.put_into(example('nginx'))}}}\n"
    )
    return ["nginx", "-e", "stderr", "-p", str(place.directory), "-c", str(path)]


def caddy(place: ProxyPlace) -> Sequence[str]:
    """The command that serves caddy's example."""
    version = subprocess.run(["caddy", "version"], check=True, capture_output=True, text=True)
    text = place.put_into(example("caddy")).replace(" HASH", f" {HASH}")
    numbers = [int(number) for number in re.findall(r"\d+", version.stdout)[:2]]
    if numbers < [2, 8]:
        text = text.replace("basic_auth", "basicauth")
    path = place.directory / "Caddyfile"
    path.write_text(text.replace("auto_https off", "auto_https off\nadmin off", 1))
    return ["caddy", "run", "--config", str(path), "--adapter", "caddyfile"]


@contextlib.contextmanager
def running(command: Sequence[str], place: ProxyPlace) -> Iterator[None]:
    log = place.directory / "proxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, "HOME": str(place.directory), "XDG_DATA_HOME": str(place.directory)},
        )

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return place.get("/-/healthy")[0] == 200
        return False

    try:
        wait_for(lambda: answers() or process.poll() is not None, 60.0, "the proxy's first answer")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(patient(20.0))


@pytest.mark.parametrize("proxy", ["nginx", "caddy"])
def test_an_example_of_a_proxy_asks_for_a_password_over_tls(proxy: str, tmp_path: Path) -> None:
    needs.require({proxy: proxy, "openssl": "openssl"})
    command = {"nginx": nginx, "caddy": caddy}[proxy]
    config = load(write_config(tmp_path / "etc", tmp_path, ["127.0.0.1:1"]))
    with exporting(config) as exporter:
        [port] = free_ports(1)
        place = ProxyPlace(tmp_path, port, exporter.port)
        place.make_certificate()
        with running(command(place), place):
            assert place.get("/-/healthy") == (200, "ok\n")
            for path in ("/", "/metrics", "/primary", "/api/v1/status", "/nothing"):
                assert place.get(path)[0] == place.get(path, WRONG)[0] == 401
            status, metrics = place.get("/metrics", RIGHT)
            assert (status, "standfast_up{" in metrics) == (200, True)
            assert place.get("/primary", RIGHT)[0] == 503
            assert "</html>" in place.get("/", RIGHT)[1]
