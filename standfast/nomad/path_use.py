"""Which tasks of an allocation use the volume: pure, from the job's document.

By the path: host volumes and docker's volumes and mounts name it outright; any other driver's
configuration, environment and templates are searched for it. A directory above the path counts
where something is mounted: a container that was given /data shows the old mount below it for ever.

By a mount of their own: a docker volume of type nfs and a CSI volume name the server and its
export. A restart makes docker mount anew; Nomad mounts a CSI volume once for an allocation
(client/allocrunner/csi_hook.go), so that only a new allocation has a new mount.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from standfast.nomad.constraints import dicts, text_of
from standfast.nomad.ports import CsiVolume


@dataclass(frozen=True, slots=True)
class Shown:
    """Where the volume is seen on a node, and what is known of the node's volumes."""

    path: str
    server: str = ""
    """The name that clients mount from."""
    export: str = ""
    """The path that the server exports."""
    host_volumes: Mapping[str, str] = field(default_factory=dict)
    """Name -> path on the node."""
    csi_volumes: Mapping[str, CsiVolume] = field(default_factory=dict)
    """Of the allocation's namespace, by id; one that isn't here counts as another's."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a task uses the volume, in a few words."""

    how: str
    of_allocation: bool = False
    """The mount lasts as long as the allocation."""

    def __str__(self) -> str:
        return self.how


def uses(job: Mapping[str, Any], group: str, shown: Shown, index: str = "") -> Mapping[str, Way]:
    """Returns task -> how it uses the volume; empty when none does.

    `index` is the end of the allocation's name, `[0]`, which `per_alloc` volumes have in theirs.
    """
    ways: dict[str, Way] = {}
    for candidate in _groups(job, group):
        volumes = dict(_of_path(candidate, shown, index))
        for task in dicts(candidate.get("Tasks")):
            way = max(_ways(task, shown, volumes), key=lambda way: way.of_allocation, default=None)
            if way is not None:
                ways[text_of(task, "Name")] = way
    return ways


def csi_ids(job: Mapping[str, Any], group: str, index: str) -> frozenset[str]:
    """Returns the ids of the CSI volumes that an allocation of the group has."""
    return frozenset(
        _csi_id(volume, index)
        for candidate in _groups(job, group)
        for _, volume in _volumes(candidate)
        if volume.get("Type") == "csi"
    )


def _groups(job: Mapping[str, Any], group: str) -> Iterator[Mapping[str, Any]]:
    return (each for each in dicts(job.get("TaskGroups")) if each.get("Name") == group)


def _volumes(group: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    volumes = group.get("Volumes")
    for name, volume in (volumes if isinstance(volumes, dict) else {}).items():
        if isinstance(volume, dict):
            yield name, volume


def _csi_id(volume: Mapping[str, Any], index: str) -> str:
    return f"{text_of(volume, 'Source')}{index if volume.get('PerAlloc') is True else ''}"


def _of_path(group: Mapping[str, Any], shown: Shown, index: str) -> Iterator[tuple[str, Way]]:
    """Yields the group's volumes that show the volume."""
    for name, volume in _volumes(group):
        source = text_of(volume, "Source")
        if volume.get("Type") == "csi":
            if _is_ours(shown.csi_volumes.get(_csi_id(volume, index)), shown):
                yield name, Way(f"CSI volume {_csi_id(volume, index)}", of_allocation=True)
        elif volume.get("Type") in ("host", "", None):
            if volume.get("PerAlloc") is True:  # source[0], source[1]: one of each allocation
                sources = [each for each in shown.host_volumes if each.partition("[")[0] == source]
            else:
                sources = [source]
            if any(shows(shown.host_volumes.get(each, ""), shown.path) for each in sources):
                yield name, Way(f"host volume {source}")


def _is_ours(volume: CsiVolume | None, shown: Shown) -> bool:
    """Tells whether it mounts our server's export, by the names that csi-driver-nfs and
    democratic-csi have for these, in any case."""
    if volume is None:
        return False
    said = {key.lower(): value for key, value in {**volume.parameters, **volume.context}.items()}
    return _mounts(said.get("server", ""), said.get("share", ""), shown)


def _mounts(server: str, export: str, shown: Shown) -> bool:
    return server.lower().removesuffix(".") == shown.server and shows(export, shown.export)


def _ways(task: Mapping[str, Any], shown: Shown, volumes: Mapping[str, Way]) -> Iterator[Way]:
    for mount in dicts(task.get("VolumeMounts")):
        if (name := text_of(mount, "Volume")) in volumes:
            yield volumes[name]
    yield from map(Way, _ways_of_its_own(task, shown))


def _ways_of_its_own(task: Mapping[str, Any], shown: Shown) -> Iterator[str]:
    path = shown.path
    config = task.get("Config")
    config = config if isinstance(config, dict) else {}
    yield from _container_ways(config, shown)
    for text in _texts(config):
        if mentions(text, path):
            yield f"{text_of(task, 'Driver') or 'its'} configuration"
    for name, text in _items(task.get("Env")):
        if mentions(text, path):
            yield f"environment {name}"
    for template in dicts(task.get("Templates")):
        for place in ("SourcePath", "EmbeddedTmpl", "DestPath"):
            if mentions(text_of(template, place), path):
                yield f"template {text_of(template, 'DestPath') or place}"


def _container_ways(config: Mapping[str, Any], shown: Shown) -> Iterator[str]:
    """docker and podman have `volumes = ["/src:/dst:ro"]`, `mount { type source }`, `mounts`."""
    volumes = config.get("volumes")
    for volume in volumes if isinstance(volumes, list) else ():
        source = volume.partition(":")[0] if isinstance(volume, str) else ""
        if shows(source, shown.path):
            yield f"volume {source}"
    for mount in (*_blocks(config.get("mount")), *_blocks(config.get("mounts"))):
        source = text_of(mount, "source")
        if mount.get("type", "bind") == "bind" and shows(source, shown.path):
            yield f"mount {source}"
        if any(_is_our_driver(driver, shown) for driver in _drivers(mount)):
            yield f"docker volume {source or text_of(mount, 'target')}"


def _drivers(mount: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for volume_options in _blocks(mount.get("volume_options")):
        yield from _blocks(volume_options.get("driver_config"))


def _is_our_driver(driver: Mapping[str, Any], shown: Shown) -> bool:
    """Docker's own driver, `local`, mounts what its options say: `device` is `:/path`, with the
    server in `addr=` of the mount's options `o`, or `server:/path`; `addr=` counts."""
    said = {key: text for part in _blocks(driver.get("options")) for key, text in _items(part)}
    if driver.get("name") not in ("local", "", None) or not said.get("type", "").startswith("nfs"):
        return False
    server, _, export = said.get("device", "").partition(":")
    for word in said.get("o", "").split(","):
        if word.startswith("addr="):
            server = word.removeprefix("addr=")
    return _mounts(server, export, shown)


def _blocks(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yields a block of a job file, which is an object or, as HCL is read, a list of them."""
    yield from dicts([value] if isinstance(value, dict) else value)


def shows(source: str, path: str) -> bool:
    """Tells whether a mount of `source` shows (a part of) what is at `path`; both are absolute."""
    if not source.startswith("/"):
        return False
    outer, inner = PurePosixPath(source), PurePosixPath(path)
    return outer.is_relative_to(inner) or inner.is_relative_to(outer)


def mentions(text: str, path: str) -> bool:
    """Tells whether a text names the path, or something below it."""
    # Most texts don't: a pattern for each of a hundred thousand would take a second.
    if path not in text:
        return False
    return re.search(rf"(?<![\w.-]){re.escape(path)}(?![\w-]|\.\w)", text) is not None


def _texts(value: Any) -> Iterator[str]:
    """Yields every text in a document, however deep, in its order."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            left += reversed(value.values())
        elif isinstance(value, list):
            left += reversed(value)


def _items(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        yield from ((key, text) for key, text in value.items() if isinstance(text, str))
