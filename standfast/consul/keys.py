"""Consul's keys: where it is asked, what is read of them, and what is written.

Invariants: those of the gateway, which this is a part of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from standfast.config.model import Config
from standfast.consul.access import check_token, env_path, read_token
from standfast.consul.client import DENIED, TXN, Addresses, Client, Failed, Question
from standfast.consul.http import MAX_BODY_BYTES, Endpoint, tls_context
from standfast.consul.values import (
    Committed,
    Conflict,
    Entry,
    GetTree,
    Op,
    check_key,
    dump_op,
    is_folder,
    parse_committed,
    parse_conflict,
    parse_entry,
    parse_entry_of,
    parse_read,
)
from standfast.errors import ConfigError, ConsulDenied
from standfast.system.clock import Deadline
from standfast.system.environment import TAKEN

DEFAULT_ADDRESS = "127.0.0.1:8500"
CONSISTENCY = {True: "consistent", False: "default"}
T = TypeVar("T")


class KeyGateway:
    """Asks Consul through one or several addresses, tried in turn within the deadline of each
    call.

    Every call takes `deadline` (default: `timeout_s` from now) and raises a ConsulError.
    Thread-safe. Reads go on to the next address after any failure; writes only when nothing can
    have been applied. Agent-local calls use the first address alone.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        token: str | None = None,
        ca_cert: Path | None = None,
        client_cert: Path | None = None,
        client_key: Path | None = None,
        timeout_s: float = 2.0,
    ) -> None:
        scheme = "https" if ca_cert or client_cert else "http"
        endpoints = tuple(Endpoint.parse(address, default_scheme=scheme) for address in addresses)
        if not endpoints:
            raise ConfigError("consul.addresses is empty. Give at least one host:port.")
        check_token(token or "", "Consul")
        uses_tls = any(endpoint.scheme == "https" for endpoint in endpoints)
        tls = tls_context(ca_cert, client_cert, client_key) if uses_tls else None
        self.endpoints = endpoints
        """Where to ask, the node's own agent first."""
        self._addresses = Addresses(endpoints, token or "", tls)
        self.timeout_s = timeout_s

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        timeout_s: float | None = None,
        environ: Mapping[str, str] = TAKEN,
    ) -> Self:
        """Builds the gateway from [consul] of the configuration; what that leaves empty comes from
        CONSUL_*, else defaults.

        `timeout_s` defaults to lease.request_timeout. ConfigError for unusable values or files.
        """
        access = config.consul
        token = None
        if access.token_file:
            token = read_token(access.token_file, "consul.token_file", "CONSUL_HTTP_TOKEN")
        return cls(
            access.addresses or (environ.get("CONSUL_HTTP_ADDR") or DEFAULT_ADDRESS,),
            token=token or environ.get("CONSUL_HTTP_TOKEN") or None,
            ca_cert=access.ca_cert or env_path(environ, "CONSUL_CACERT"),
            client_cert=access.client_cert or env_path(environ, "CONSUL_CLIENT_CERT"),
            client_key=access.client_key or env_path(environ, "CONSUL_CLIENT_KEY"),
            timeout_s=config.lease.request_timeout if timeout_s is None else timeout_s,
        )

    # KV

    def get(
        self, key: str, *, consistent: bool = False, deadline: Deadline | None = None
    ) -> Entry | None:
        """Returns the entry, or None when Consul says that the key doesn't exist."""
        check_key(key)

        def call(client: Client) -> Entry | None:
            _index, raw = client.kv.get(key, consistency=CONSISTENCY[consistent])
            return parse_entry_of(raw, key)

        return self._ask(f"reading the key {key}", deadline, call)

    def get_many(
        self,
        prefix: str,
        *,
        consistent: bool = False,
        deadline: Deadline | None = None,
        most_bytes: int = MAX_BODY_BYTES,
    ) -> tuple[Entry, ...]:
        """Returns all entries whose key starts with `prefix`, at one point in time, sorted by key;
        no folders, which Consul's web interface makes.

        `most_bytes`: of the answer, where others write what they like. ConsulGarbled beyond it.
        """
        check_key(prefix)

        def call(client: Client) -> tuple[Entry, ...]:
            _index, raw = client.kv.get(prefix, recurse=True, consistency=CONSISTENCY[consistent])
            entries = [parse_entry(item) for item in raw or []]
            if not all(entry.key.startswith(prefix) for entry in entries):
                raise ValueError(f"keys outside {prefix!r}")
            ours = [entry for entry in entries if not is_folder(entry.key)]
            return tuple(sorted(ours, key=lambda entry: entry.key))

        return self._ask(f"reading the keys under {prefix}", deadline, call, most_bytes=most_bytes)

    def read(
        self, keys: Sequence[str], *, folders: Sequence[str] = (), deadline: Deadline | None = None
    ) -> Mapping[str, Entry | None]:
        """Returns several keys, and every key in several folders (`.../history/`), at one point in
        time, consistently; nothing of anything else.

        A key that the token may not read counts as missing, as with every read of Consul's but
        that of one key.
        """
        # A transaction that only reads goes through no log. `get` of a missing key would fail all
        # of it; what a tree has beyond the key that it begins with is left out.
        trees = [GetTree(key) for key in (*keys, *folders)]
        for tree in trees:
            check_key(tree.key)
        payload = json.dumps([dump_op(tree) for tree in trees])

        def parse(response: Any) -> dict[str, Entry]:
            doc = json.loads(response.body)
            if response.code != 200:
                raise ValueError("; ".join(parse_conflict(doc).errors))
            return {entry.key: entry for entry in parse_read(doc, trees)}

        def call(client: Client) -> Mapping[str, Entry | None]:
            once = [("consistent", "1")]
            found: dict[str, Entry] = client.http.put(parse, TXN, params=once, data=payload)
            inside = [key for key in sorted(found) if key.startswith(tuple(folders))]
            return {key: found.get(key) for key in (*keys, *inside) if not is_folder(key)}

        return self._ask(f"reading {_named(keys, folders)}", deadline, call)

    def wait(self, key: str, index: int, *, wait_s: float) -> tuple[int, Entry | None]:
        """Waits up to `wait_s` for a change of the key after `index` (0: answers at once).

        Returns the index to go on with, never below 1; one that went backwards (Consul was
        restored) is returned like any other, and so is an unchanged one after the whole time.
        """
        check_key(key)
        whole = Deadline.after(wait_s * 17 / 16 + self.timeout_s)  # Consul adds up to 1/16
        question = Question(f"waiting for the key {key}", whole, patient=True)

        def call(client: Client) -> tuple[int, Entry | None]:
            left_s = (client.attempt.deadline.remaining_s() - self.timeout_s) * 16 / 17
            seconds = max(0.01, min(wait_s, left_s))  # Consul takes 0 for five minutes
            new_index, raw = client.kv.get(key, index=index or None, wait=f"{seconds:.3f}s")
            return max(1, int(new_index)), parse_entry_of(raw, key)

        return self._addresses.ask(question, call)

    def txn(self, ops: Sequence[Op], *, deadline: Deadline | None = None) -> Committed | Conflict:
        """Does all operations or none. ConsulError.maybe_applied: read back before going on."""
        for op in ops:
            check_key(op.key)
        payload = json.dumps([dump_op(op) for op in ops])
        keys = ", ".join(dict.fromkeys(op.key for op in ops))

        def parse(response: Any) -> Committed | Conflict:
            doc = json.loads(response.body)
            if response.code == 200:
                return parse_committed(doc, ops)
            conflict = parse_conflict(doc)
            for text in conflict.errors:  # Consul reports these as conflicts, with 409
                if any(word in text for word in DENIED):
                    raise Failed(ConsulDenied, f"a transaction was refused: {text}")
            return conflict

        def call(client: Client) -> Committed | Conflict:
            outcome: Committed | Conflict = client.http.put(parse, TXN, data=payload)
            return outcome

        return self._ask(f"a transaction on {keys}", deadline, call, write=True)

    def put(self, key: str, value: bytes, *, deadline: Deadline | None = None) -> None:
        """Sets the key whatever it holds."""
        check_key(key)
        self._write(f"writing the key {key}", deadline, lambda client: client.kv.put(key, value))

    def delete(self, key: str, *, deadline: Deadline | None = None) -> None:
        """Deletes the key; one that doesn't exist is fine."""
        check_key(key)
        self._write(f"deleting the key {key}", deadline, lambda client: client.kv.delete(key))

    def _ask(
        self,
        what: str,
        deadline: Deadline | None,
        call: Callable[[Client], T],
        *,
        write: bool = False,
        local: bool = False,
        most_bytes: int = MAX_BODY_BYTES,
    ) -> T:
        until = deadline or Deadline.after(self.timeout_s)
        question = Question(
            what, until, write=write, patient=write, local=local, most_bytes=most_bytes
        )
        return self._addresses.ask(question, call)

    def _write(
        self,
        what: str,
        deadline: Deadline | None,
        call: Callable[[Client], object],
        *,
        local: bool = False,
    ) -> None:
        """Asks for a change, which Consul answers with true."""

        def done(client: Client) -> None:
            if (result := call(client)) is not True:
                raise ValueError(f"{result!r} instead of true")

        self._ask(what, deadline, done, write=True, local=local)


def _named(keys: Sequence[str], folders: Sequence[str]) -> str:
    """Says what is read, without the whole of a long list."""
    names = [*keys, *folders]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more keys"
