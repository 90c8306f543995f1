"""The mount and automount units of a volume's path: pure, made for the configuration.

The runbook's: an automount that lets go after 60 s without use, or the plain mount alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from standfast.config.model import Config

IDLE_S = 60
# Longer than any mount of a living server; a dead one's is given up, and tried at the next access.
GIVE_UP_S = 30


def unit_name(path: Path, suffix: str) -> str:
    """Returns the unit of a mount point, escaped as systemd-escape --path does it."""
    text = "/".join(part for part in str(path).split("/") if part)
    if not text:
        return f"-.{suffix}"
    escaped = ""
    for number, byte in enumerate(os.fsencode(text)):
        char = chr(byte)
        if char == "/":
            escaped += "-"
        elif (char.isascii() and (char.isalnum() or char in ":_")) or (char == "." and number):
            escaped += char
        else:
            escaped += f"\\x{byte:02x}"
    return f"{escaped}.{suffix}"


def unit_files(config: Config) -> dict[str, str]:
    """Returns file name -> text, the mount first."""
    path = config.paths.bind
    return {
        unit_name(path, "mount"): _mount(config),
        unit_name(path, "automount"): _automount(config),
    }


def _mount(config: Config) -> str:
    options = config.client.mount_options
    if config.nfs.port != 2049:
        options += f",port={config.nfs.port}"
    return f"""\
[Unit]
Description=Standfast: volume {config.volume}, from whoever serves it
Documentation=man:standfast(1)
# Services that use it say RequiresMountsFor={_escaped(config.paths.bind)} in their [Unit]: after a
# change of server they are restarted then.
After=network-online.target consul.service
Wants=network-online.target
# With a limit the automount ends for good after five accesses while nobody serves.
StartLimitIntervalSec=0

[Mount]
What={config.server_name}:{_escaped(config.paths.live)}
Where={_escaped(config.paths.bind)}
Type=nfs4
Options={options},retry=0
TimeoutSec={GIVE_UP_S}s

[Install]
WantedBy=remote-fs.target
"""


def _automount(config: Config) -> str:
    return f"""\
[Unit]
Description=Standfast: volume {config.volume}, mounted at the first access
Documentation=man:standfast(1)

[Automount]
Where={_escaped(config.paths.bind)}
TimeoutIdleSec={IDLE_S}s

[Install]
WantedBy=remote-fs.target
"""


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")


def nfs_source(address: str, export: Path) -> str:
    """Returns what is mounted, as mount.nfs wants it."""
    return f"[{address}]:{export}" if ":" in address else f"{address}:{export}"
