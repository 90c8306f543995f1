"""Messages to the service manager; without one they go nowhere."""

from __future__ import annotations

import os
import socket


def notify(message: str) -> None:
    """Sends READY=1, WATCHDOG=1, STATUS=...; it never fails (a lost message is a missed
    watchdog)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
            connection.sendto(message.encode(), address)
    except OSError:
        return
