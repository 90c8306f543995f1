"""What the servers of the embedded cluster agree on: keys, nodes, services, checks, indexes.

Invariant: rows are frozen and each change gives its rows and tables the next index, as Consul 1.8
does; a write that changes nothing moves no index of a key. The caller holds the cluster's lock.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

SERF_HEALTH = "serfHealth"


@dataclass(frozen=True, slots=True)
class KeyRow:
    key: str
    value: bytes
    flags: int
    create_index: int
    modify_index: int

    def dump(self, *, with_value: bool = True) -> dict[str, Any]:
        value = base64.b64encode(self.value).decode() if self.value and with_value else None
        return {
            "LockIndex": 0,
            "Key": self.key,
            "Flags": self.flags,
            "Value": value,
            "CreateIndex": self.create_index,
            "ModifyIndex": self.modify_index,
        }


@dataclass(frozen=True, slots=True)
class NodeRow:
    name: str
    address: str
    create_index: int
    modify_index: int


@dataclass(frozen=True, slots=True)
class ServiceRow:
    node: str
    service_id: str
    name: str
    address: str = ""
    port: int = 0
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    create_index: int = 0
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class CheckRow:
    node: str
    check_id: str
    name: str
    status: str
    output: str = ""
    service_id: str = ""
    service_name: str = ""
    kind: str = ""
    create_index: int = 0
    modify_index: int = 0


class KeyRefused(Exception):
    """One operation of a transaction didn't hold; the text is Consul's."""


class ClusterState:
    """The replicated state; `generation` counts restores."""

    def __init__(self) -> None:
        self.generation = 0
        self._index = 0
        self._keys: dict[str, KeyRow] = {}
        self._tombstones: dict[str, int] = {}
        self._nodes: dict[str, NodeRow] = {}
        self._services: dict[tuple[str, str], ServiceRow] = {}
        self._checks: dict[tuple[str, str], CheckRow] = {}
        self._tables: dict[str, int] = {}
        self._service_indexes: dict[str, int] = {}

    _COPIED = (
        "_keys",
        "_tombstones",
        "_nodes",
        "_services",
        "_checks",
        "_tables",
        "_service_indexes",
    )

    def snapshot(self) -> dict[str, Any]:
        return {
            "_index": self._index,
            **{name: dict(getattr(self, name)) for name in self._COPIED},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Back to a snapshot, indexes included; waiting queries are sent home."""
        self._index = saved["_index"]
        for name in self._COPIED:
            setattr(self, name, dict(saved[name]))
        self.generation += 1

    def next_index(self) -> int:
        """Each command gets one, whether it changes something or not."""
        self._index += 1
        return self._index

    # Keys

    def key(self, key: str) -> tuple[int, KeyRow | None]:
        """The row with its own index, or None with the table's."""
        row = self._keys.get(key)
        return (row.modify_index if row else self._table_index("keys")), row

    def keys_under(self, prefix: str) -> tuple[int, list[KeyRow]]:
        """Rows sorted by key, with the highest index under the prefix, deletions included."""
        rows = [self._keys[key] for key in sorted(self._keys) if key.startswith(prefix)]
        indexes = [row.modify_index for row in rows]
        indexes += [index for key, index in self._tombstones.items() if key.startswith(prefix)]
        if not prefix or not indexes:
            return self._table_index("keys"), rows
        return max(indexes), rows

    def set_key(self, index: int, key: str, value: bytes, flags: int = 0) -> KeyRow:
        old = self._keys.get(key)
        if old is not None and (old.value, old.flags) == (value, flags):
            return old
        row = KeyRow(key, value, flags, old.create_index if old else index, index)
        self._keys[key] = row
        self._tables["keys"] = index
        return row

    def delete_key(self, index: int, key: str) -> None:
        if self._keys.pop(key, None) is not None:
            self._tombstones[key] = index
            self._tables["keys"] = index

    def transact(
        self, ops: Sequence[Mapping[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(results, errors) in Consul's form; with any error nothing is changed."""
        index = self.next_index()
        before = (dict(self._keys), dict(self._tombstones), dict(self._tables))
        results: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        try:
            for position, op in enumerate(ops):
                try:
                    results.extend({"KV": entry} for entry in self._apply(index, op["KV"]))
                except KeyRefused as refusal:
                    errors.append({"OpIndex": position, "What": str(refusal)})
        except (ValueError, TypeError):  # not base64, not a number: the caller's 400
            self._keys, self._tombstones, self._tables = before
            raise
        if errors:
            self._keys, self._tombstones, self._tables = before
        return ([] if errors else results), errors

    def _apply(self, index: int, op: Mapping[str, Any]) -> list[dict[str, Any]]:
        verbs: dict[str, Callable[[int, Mapping[str, Any]], list[dict[str, Any]]]] = {
            "set": self._verb_set,
            "cas": self._verb_cas,
            "delete": self._verb_delete,
            "check-index": self._verb_check_index,
            "check-not-exists": self._verb_check_not_exists,
        }
        verb = verbs.get(op["Verb"])
        if verb is None:
            raise KeyRefused(f'unknown KV verb "{op["Verb"]}"')
        return verb(index, op)

    def _verb_set(self, index: int, op: Mapping[str, Any]) -> list[dict[str, Any]]:
        row = self.set_key(index, op["Key"], _value(op), int(op.get("Flags") or 0))
        return [row.dump(with_value=False)]

    def _verb_cas(self, index: int, op: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self._current(op["Key"]) != int(op.get("Index") or 0):
            raise KeyRefused(f'failed to set key "{op["Key"]}", index is stale')
        return self._verb_set(index, op)

    def _verb_delete(self, index: int, op: Mapping[str, Any]) -> list[dict[str, Any]]:
        self.delete_key(index, op["Key"])
        return []

    def _verb_check_index(self, _index: int, op: Mapping[str, Any]) -> list[dict[str, Any]]:
        key, wanted = op["Key"], int(op.get("Index") or 0)
        row = self._keys.get(key)
        if row is None:
            raise KeyRefused(f'failed to check index, key "{key}" doesn\'t exist')
        if row.modify_index != wanted:
            raise KeyRefused(
                f'failed index check for key "{key}", '
                f"current modify index {row.modify_index} != {wanted}"
            )
        return [row.dump(with_value=False)]

    def _verb_check_not_exists(self, _index: int, op: Mapping[str, Any]) -> list[dict[str, Any]]:
        if op["Key"] in self._keys:
            raise KeyRefused(f'key "{op["Key"]}" exists')
        return []

    def _current(self, key: str) -> int:
        row = self._keys.get(key)
        return row.modify_index if row else 0

    # Catalog

    def put_node(self, index: int, name: str, address: str) -> None:
        old = self._nodes.get(name)
        if old is None or old.address != address:
            created = old.create_index if old else index
            self._nodes[name] = NodeRow(name, address, created, index)
            self._touch(index, "nodes", self._names_on(name))

    def remove_node(self, index: int, name: str) -> None:
        """With everything on it, as when autopilot or `force-leave` reaps a member."""
        if name not in self._nodes:
            return
        for node, service_id in [key for key in self._services if key[0] == name]:
            self.remove_service(index, node, service_id)
        self._checks = {key: row for key, row in self._checks.items() if key[0] != name}
        del self._nodes[name]
        self._touch(index, "checks", ())
        self._touch(index, "nodes", ())

    def put_service(self, index: int, row: ServiceRow) -> None:
        key = (row.node, row.service_id)
        old = self._services.get(key)
        created = old.create_index if old else index
        new = replace(row, create_index=created, modify_index=index)
        if old is None or replace(new, modify_index=old.modify_index) != old:
            self._services[key] = new
            self._touch(index, "services", {new.name} | ({old.name} if old else set()))

    def remove_service(self, index: int, node: str, service_id: str) -> None:
        row = self._services.pop((node, service_id), None)
        if row is None:
            return
        for key in [
            k for k, c in self._checks.items() if (c.node, c.service_id) == (node, row.service_id)
        ]:
            del self._checks[key]
            self._tables["checks"] = index
        self._touch(index, "services", {row.name})
        if not any(other.name == row.name for other in self._services.values()):
            self._service_indexes.pop(row.name, None)
            self._tables["extinction"] = index

    def put_check(self, index: int, row: CheckRow) -> None:
        key = (row.node, row.check_id)
        old = self._checks.get(key)
        created = old.create_index if old else index
        new = replace(row, create_index=created, modify_index=index)
        if old is None or replace(new, modify_index=old.modify_index) != old:
            self._checks[key] = new
            touched = {row.service_name} if row.service_name else self._names_on(row.node)
            self._touch(index, "checks", touched)

    def services_on(self, node: str) -> list[ServiceRow]:
        return [row for row in self._services.values() if row.node == node]

    def services(self, name: str) -> tuple[int, list[ServiceRow]]:
        """The instances of a service by node and id, with the service's own index."""
        rows = [self._services[key] for key in sorted(self._services)]
        rows = [row for row in rows if row.name == name]
        if rows:
            return self._service_indexes[name], rows
        last_extinction = self._tables.get("extinction")
        if last_extinction:
            return last_extinction, []
        return max(self._table_index(table) for table in ("nodes", "services", "checks")), []

    def node(self, name: str) -> NodeRow | None:
        return self._nodes.get(name)

    def checks(self, wanted: Callable[[CheckRow], bool]) -> tuple[int, list[CheckRow]]:
        rows = [self._checks[key] for key in sorted(self._checks)]
        return self._table_index("checks"), [row for row in rows if wanted(row)]

    def _names_on(self, node: str) -> set[str]:
        return {row.name for row in self.services_on(node)}

    def _touch(self, index: int, table: str, service_names: Iterable[str]) -> None:
        self._tables[table] = index
        for name in service_names:
            self._service_indexes[name] = index

    def _table_index(self, table: str) -> int:
        return max(1, self._tables.get(table, 0))


def _value(op: Mapping[str, Any]) -> bytes:
    return base64.b64decode(op.get("Value") or "", validate=True)
