"""TLS for the exporter: a certificate and its key, read again when their files change.

Invariant: once a pair was good there is always one: a renewal that can't be used is told in the
log and changes nothing.
"""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path

from standfast.errors import UsageError
from standfast.exporter.passwords import refuse_open

log = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int], ...]


class Certificate:
    """The pair as of now; for any thread."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """UsageError when the files can't be used."""
        self._certificate, self._key = certificate, key
        self._lock = threading.Lock()
        try:
            self._seen = self._look()
            self._context = self._load()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{certificate} and {key} are no certificate with its key in PEM: {error}"
            ) from error

    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        with self._lock:
            try:
                stamp = self._look()
                if stamp != self._seen:
                    self._seen = stamp
                    self._context = self._load()
                    log.info("%s was read again", self._certificate)
            except (OSError, ValueError, UsageError) as error:
                log.warning("still with the certificate of before: %s", error)
            return self._context

    def _look(self) -> Stamp:
        found = [path.stat() for path in (self._certificate, self._key)]
        return tuple((one.st_mtime_ns, one.st_ino) for one in found)

    def _load(self) -> ssl.SSLContext:
        refuse_open(self._key, self._key.stat().st_mode)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._certificate, self._key)
        return context
