"""Which tasks of an allocation use the volume's path: pure, from the job's document.

Host volumes and docker's volumes and mounts name it outright; any other driver's configuration,
environment and templates are searched for it. A directory above the path counts where something is
mounted: a container that was given /data shows the old mount below it for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from standfast.nomad.constraints import dicts


def uses(
    job: Mapping[str, Any], group: str, path: str, host_volumes: Mapping[str, str]
) -> Mapping[str, str]:
    """Returns task -> how it uses the path, in a few words; empty when none does."""
    ways: dict[str, str] = {}
    for candidate in dicts(job.get("TaskGroups")):
        if candidate.get("Name") != group:
            continue
        volumes = _of_path(candidate, path, host_volumes)
        for task in dicts(candidate.get("Tasks")):
            how = next(_ways(task, path, volumes), None)
            if how is not None:
                ways[str(task.get("Name"))] = how
    return ways


def _of_path(
    group: Mapping[str, Any], path: str, host_volumes: Mapping[str, str]
) -> Mapping[str, str]:
    """Returns the group's volumes that show the path: name -> source."""
    volumes = group.get("Volumes")
    shown = {}
    for name, volume in (volumes if isinstance(volumes, dict) else {}).items():
        if not isinstance(volume, dict) or volume.get("Type") not in ("host", "", None):
            continue
        source = str(volume.get("Source", ""))
        if volume.get("PerAlloc") is True:  # source[0], source[1]: one of each allocation
            sources = [each for each in host_volumes if each.partition("[")[0] == source]
        else:
            sources = [source]
        if any(shows(host_volumes.get(each, ""), path) for each in sources):
            shown[name] = source
    return shown


def _ways(task: Mapping[str, Any], path: str, volumes: Mapping[str, str]) -> Iterator[str]:
    for mount in dicts(task.get("VolumeMounts")):
        if mount.get("Volume") in volumes:
            yield f"host volume {volumes[mount['Volume']]}"
    config = task.get("Config")
    config = config if isinstance(config, dict) else {}
    yield from _container_ways(config, path)
    for text in _texts(config):
        if mentions(text, path):
            yield f"{task.get('Driver') or 'its'} configuration"
    for name, text in _items(task.get("Env")):
        if mentions(text, path):
            yield f"environment {name}"
    for template in dicts(task.get("Templates")):
        for field in ("SourcePath", "EmbeddedTmpl", "DestPath"):
            if mentions(str(template.get(field) or ""), path):
                yield f"template {template.get('DestPath') or field}"


def _container_ways(config: Mapping[str, Any], path: str) -> Iterator[str]:
    """docker and podman have `volumes = ["/src:/dst:ro"]`, `mount { type source }`, `mounts`."""
    for volume in config.get("volumes") or ():
        source = str(volume).partition(":")[0]
        if shows(source, path):
            yield f"volume {source}"
    for kind in ("mount", "mounts"):
        value = config.get(kind)
        for mount in dicts([value] if isinstance(value, dict) else value):
            source = str(mount.get("source") or "")
            if mount.get("type", "bind") == "bind" and shows(source, path):
                yield f"mount {source}"


def shows(source: str, path: str) -> bool:
    """Tells whether a mount of `source` shows (a part of) what is at `path`; both are absolute."""
    if not source.startswith("/"):
        return False
    outer, inner = PurePosixPath(source), PurePosixPath(path)
    return outer.is_relative_to(inner) or inner.is_relative_to(outer)


def mentions(text: str, path: str) -> bool:
    """Tells whether a text names the path, or something below it."""
    return re.search(rf"(?<![\w.-]){re.escape(path)}(?![\w-]|\.\w)", text) is not None


def _texts(value: Any) -> Iterator[str]:
    """Yields every text in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _items(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        yield from ((str(key), str(text)) for key, text in value.items())
