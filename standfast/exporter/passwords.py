"""Basic authentication by an htpasswd file with bcrypt hashes.

Invariants: a name that isn't there costs as much time as a wrong password, and texts are compared
in constant time. No password is kept: one that was right is remembered by a keyed digest, under a
key that ends with the process, so that not every scrape pays for bcrypt.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

import bcrypt

from standfast.errors import StandfastError, UsageError

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
# bcrypt reads no more of a password; what is longer is never right, not cut.
LONGEST_PASSWORD = 72
MOST_REMEMBERED = 256
MOST_COST = 15
Stamp = tuple[int, int, int, int]
_HASH = re.compile(r"\$2[aby]\$(?P<cost>[0-9]{2})\$[./A-Za-z0-9]{53}")


def parse(text: str, path: Path) -> Mapping[str, bytes]:
    """Names and their hashes; UsageError names the line that can't be used, never its text."""
    users: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, hashed = line.strip().partition(":")
        match = _HASH.fullmatch(hashed)
        if not name or match is None or not 4 <= int(match["cost"]) <= MOST_COST:
            raise UsageError(
                f"{path}, line {number}: not NAME:HASH with a bcrypt hash of a cost up to "
                f"{MOST_COST}: `htpasswd -B {path} NAME` writes one"
            )
        if name in users:
            raise UsageError(f"{path}, line {number}: the name is there twice")
        users[name] = hashed.encode()
    if not users:
        raise UsageError(f"{path} names nobody: `htpasswd -B {path} NAME` adds somebody")
    return users


def refuse_open(path: Path, mode: int) -> None:
    """UsageError for a file that everybody on this machine may read or write."""
    if mode & stat.S_IRWXO:
        raise UsageError(
            f"{path} is open to everybody (mode {stat.S_IMODE(mode):04o}): `chmod o= {path}`"
        )


class Users:
    """Who may ask; for any thread. A change of the file counts from the next request on."""

    def __init__(self, path: Path) -> None:
        """UsageError when the file can't be used."""
        self._path = path
        self._lock = threading.Lock()
        # One at a time: guessing must not take every core from the agent beside it.
        self._bcrypt = threading.Lock()
        self._key = os.urandom(32)
        self._right: set[bytes] = set()
        self._complaint = ""
        self._stamp, self._users = self._load()

    def admits(self, authorization: str | None) -> bool:
        """By the request's header, as it came."""
        pair = _credentials(authorization)
        if pair is None:
            return False
        name, password = pair
        users = self._current()
        hashed = users.get(name)
        # With the hash in it: what was remembered ends with a change of the password.
        digest = hmac.digest(
            self._key, b"\0".join([name.encode(), hashed or b"", password]), hashlib.sha256
        )
        with self._lock:
            if digest in self._right:
                return True
        if not self._matches(users, hashed, password):
            return False
        with self._lock:
            if len(self._right) >= MOST_REMEMBERED:
                self._right.clear()
            self._right.add(digest)
        return True

    def _matches(self, users: Mapping[str, bytes], hashed: bytes | None, password: bytes) -> bool:
        # Somebody's hash stands in for that of an unknown name: the same work, another answer.
        against = hashed or next(iter(users.values()))
        with self._bcrypt:
            right = bcrypt.checkpw(password[:LONGEST_PASSWORD], against)
        return right and hashed is not None and len(password) <= LONGEST_PASSWORD

    def _current(self) -> Mapping[str, bytes]:
        """The file's as of now; the last good one while it can't be used."""
        with self._lock:
            try:
                found = self._path.stat()
                if _stamp(found) != self._stamp:
                    self._stamp, self._users = self._load()
                    self._complaint = ""
                    log.info("%s was read again: %d names", self._path, len(self._users))
            except (OSError, StandfastError) as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.warning("the names and passwords of before still count: %s", error)
            return self._users

    def _load(self) -> tuple[Stamp, Mapping[str, bytes]]:
        try:
            with self._path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                refuse_open(self._path, found.st_mode)
                text = stream.read(MOST_BYTES).decode()
        except (OSError, ValueError) as error:
            raise UsageError(f"{self._path} can't be read: {error}") from error
        return _stamp(found), parse(text, self._path)


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def _credentials(authorization: str | None) -> tuple[str, bytes] | None:
    """Name and password of a `Basic` header; None: there are none."""
    scheme, _, text = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(text.strip(), validate=True).partition(b":")
        return (name.decode(), password) if colon and b"\0" not in password else None
    except (binascii.Error, ValueError):
        return None
