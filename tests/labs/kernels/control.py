"""The lab's way into a node: commands by the agent of guest/agent.py.

Invariant: every call has a deadline, and a command whose caller gave up is killed in the node
(at once when the node runs, when it is thawed otherwise).
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.labs.kernels.image import AGENT_PORT
from tests.labs.kernels.network import KernelNetwork, control_address
from tests.labs.shared.node import ENVIRONMENT
from tests.support.commands import Finished, LabError, LabTimeout, words


class Control:
    """Commands of one node, one connection each."""

    def __init__(self, network: KernelNetwork, name: str, address: str) -> None:
        self._network = network
        self._name = name
        self._address = control_address(address)

    def run(
        self,
        argv: Sequence[str],
        timeout_s: float,
        data: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> Finished:
        """Run a command and wait. LabTimeout, LabError when there is no way to the node."""
        request = {"argv": list(argv), "env": ENVIRONMENT | dict(env or {})}
        what = words(argv, self._name)
        said = self._call(request, data, timeout_s, what)
        return Finished(what, int(said["x"]), said["o"], said["e"])

    def detach(self, argv: Sequence[str], output: str, timeout_s: float = 30.0) -> int:
        """Start a command that outlives the call; its pid in the node."""
        request = {"argv": list(argv), "env": ENVIRONMENT, "detach": output}
        said = self._call(request, b"", timeout_s, words(argv, self._name))
        if said["e"]:
            raise LabError(f"{self._name}: {said['e'].decode()}")
        return int(said["x"])

    def clocks(self, timeout_s: float = 5.0) -> tuple[float, float]:
        """CLOCK_BOOTTIME and CLOCK_REALTIME of the node, seconds."""
        said = self._call({"clock": True}, b"", timeout_s, f"{self._name}: its clocks")
        boot, real = json.loads(said["x"])
        return float(boot), float(real)

    def _call(
        self, request: Mapping[str, Any], data: bytes, timeout_s: float, what: str
    ) -> dict[str, bytes]:
        """What the agent answers, by the kind of its frames."""
        deadline = time.monotonic() + timeout_s
        text = json.dumps({**request, "input_bytes": len(data)}).encode()
        parts: dict[str, list[bytes]] = {"o": [], "e": [], "x": []}
        try:
            with self._network.connect(self._address, AGENT_PORT, timeout_s) as link:
                link.settimeout(_left(deadline))
                link.sendall(struct.pack(">I", len(text)) + text + data)
                while not parts["x"]:
                    kind, length = struct.unpack(">cI", _receive(link, 5, deadline))
                    parts[kind.decode()].append(_receive(link, length, deadline))
        except TimeoutError as error:
            said = b"".join(parts["o"] + parts["e"]).decode(errors="replace")
            raise LabTimeout(f"{what}: still running after {timeout_s:.1f} s: {said}") from error
        except OSError as error:
            raise LabError(f"{what}: no way to the node: {error}") from error
        return {kind: b"".join(pieces) for kind, pieces in parts.items()}


def _left(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _receive(link: socket.socket, length: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < length:
        link.settimeout(_left(deadline))
        piece = link.recv(min(65536, length - len(data)))
        if not piece:
            raise ConnectionResetError("the node closed the connection")
        data += piece
    return bytes(data)
