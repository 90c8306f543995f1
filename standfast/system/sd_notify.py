"""Messages to the service manager, which go nowhere without one; and how often it wants to hear."""

from __future__ import annotations

import os
import socket


def watchdog_s() -> float | None:
    """Returns within how many seconds WATCHDOG=1 is due each time, by `sd_watchdog_enabled(3)`;
    None: nobody waits for it from this process."""
    told, whose = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if whose not in (None, str(os.getpid())) or not (told.isascii() and told.isdigit()):
        return None
    return int(told) / 1e6 or None


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
