"""Which tasks use the volume's path, by everything that a job file can say."""

from __future__ import annotations

from typing import Any

import pytest

from standfast.nomad.path_use import Shown, csi_ids, mentions, uses
from standfast.nomad.ports import CsiVolume

PATH = "/data/services"
SERVER = "data-services.service.consul"
EXPORT = "/persist/services"
VOLUMES = {
    "services": "/data/services",
    "pg": "/data/services/pg",
    "all": "/data",
    "scratch": "/srv/scratch",
    "shard[0]": "/data/services/s0",
}


def job(task: dict[str, Any], volumes: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "TaskGroups": [
            {"Name": "g", "Volumes": volumes, "Tasks": [{"Name": "t", **task}, {"Name": "idle"}]},
            {"Name": "far", "Tasks": [{"Name": "x", "Config": {"command": f"{PATH}/x"}}]},
        ]
    }


OURS = {"server": SERVER, "share": EXPORT}
CSI = {
    "ours": CsiVolume(id="ours", context=OURS),
    "made": CsiVolume(id="made", parameters={**OURS, "share": f"{EXPORT}/pg"}),
    "case": CsiVolume(id="case", context={"Server": f"{SERVER}.", "SHARE": f"{EXPORT}/"}),
    "moved": CsiVolume(id="moved", context={"server": "nas"}, parameters=OURS),
    "other": CsiVolume(id="other", context={**OURS, "share": "/persist/services-old"}),
    "told nothing": CsiVolume(id="told nothing"),
    "shard[1]": CsiVolume(id="shard[1]", context=OURS),
}


def used(document: dict[str, Any], index: str = "[0]") -> dict[str, str]:
    ways = uses(document, "g", Shown(PATH, SERVER, EXPORT, VOLUMES, CSI), index)
    return {task: way.how for task, way in ways.items()}


def host(source: str, **more: Any) -> dict[str, Any]:
    return {"v": {"Type": "host", "Source": source, **more}}


@pytest.mark.parametrize(
    ("volumes", "shown"),
    [
        (host("services"), True),
        (host("pg"), True),
        (host("all"), True),
        (host("scratch"), False),
        (host("unknown"), False),
        (host("shard", PerAlloc=True), True),
        ({"v": {"Type": "csi", "Source": "services"}}, False),
        ({"w": {"Type": "host", "Source": "services"}}, False),
        (None, False),
        ({"v": None}, False),
    ],
)
def test_a_host_volume_by_where_it_lies_on_the_node(volumes: Any, shown: bool) -> None:
    by_task = used(job({"VolumeMounts": [{"Volume": "v"}]}, volumes))
    assert by_task == ({"t": f"host volume {volumes['v']['Source']}"} if shown else {})


@pytest.mark.parametrize(
    ("source", "more", "volume_id"),
    [
        ("ours", {}, "ours"),
        ("made", {}, "made"),
        ("case", {}, "case"),
        ("moved", {}, None),
        ("other", {}, None),
        ("told nothing", {}, None),
        ("gone", {}, None),
        ("shard", {"PerAlloc": True}, "shard[1]"),
        ("ours", {"PerAlloc": True}, None),
    ],
)
def test_a_csi_volume_by_what_its_plugin_mounts(
    source: str, more: dict[str, Any], volume_id: str | None
) -> None:
    volumes = {"v": {"Type": "csi", "Source": source, **more}}
    document = job({"VolumeMounts": [{"Volume": "v"}]}, volumes)
    assert used(document, "[1]") == ({"t": f"CSI volume {volume_id}"} if volume_id else {})
    assert csi_ids(document, "g", "[1]") == {volume_id or f"{source}{'[1]' if more else ''}"}
    assert used(job({}, volumes), "[1]") == {}, "no task mounts it"


def test_a_mount_that_lasts_as_long_as_the_allocation_goes_before_what_a_restart_renews() -> None:
    task = {"VolumeMounts": [{"Volume": "v"}], "Env": {"DATA": PATH}}
    document = job(task, {"v": {"Type": "csi", "Source": "ours"}})
    [way] = uses(document, "g", Shown(PATH, SERVER, EXPORT, csi_volumes=CSI)).values()
    assert way.of_allocation
    [way] = uses(job({"Env": {"DATA": PATH}}), "g", Shown(PATH)).values()
    assert not way.of_allocation


def docker_volume(**options: str) -> dict[str, Any]:
    """As Nomad has it, which makes a list of each block."""
    driver = {"name": "local", "options": [options]}
    return {
        "type": "volume", "target": "/d", "source": "named",
        "volume_options": [{"no_copy": True, "driver_config": [driver]}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({"type": "nfs", "o": f"addr={SERVER},rw,nfsvers=4.2", "device": f":{EXPORT}"}, True),
        ({"type": "nfs4", "o": f"rw,addr={SERVER}", "device": f":{EXPORT}/pg"}, True),
        ({"type": "nfs", "o": "rw", "device": f"{SERVER}:{EXPORT}"}, True),
        ({"type": "nfs", "o": "addr=192.168.1.9,rw", "device": f":{EXPORT}"}, False),
        ({"type": "nfs", "o": f"addr={SERVER}", "device": ":/persist/services-old"}, False),
        ({"type": "cifs", "o": f"addr={SERVER}", "device": f":{EXPORT}"}, False),
        ({"o": f"addr={SERVER}", "device": f":{EXPORT}"}, False),
        ({}, False),
    ],
)
def test_a_docker_volume_by_what_its_options_mount(options: dict[str, str], ours: bool) -> None:
    expected = {"t": "docker volume named"} if ours else {}
    mount = docker_volume(**options)
    assert used(job({"Driver": "docker", "Config": {"mount": [mount]}})) == expected
    driver = {"name": "local", "options": options}
    attributes = {**mount, "volume_options": {"driver_config": driver}}
    assert used(job({"Driver": "docker", "Config": {"mounts": [attributes]}})) == expected
    foreign = {**mount, "volume_options": [{"driver_config": [{**driver, "name": "rexray"}]}]}
    assert used(job({"Driver": "docker", "Config": {"mount": foreign}})) == {}


def test_a_volume_of_the_group_that_a_task_doesnt_mount_is_not_used_by_it() -> None:
    assert used(job({}, host("services"))) == {}


@pytest.mark.parametrize(
    ("task", "how"),
    [
        ({"Driver": "docker", "Config": {"volumes": [f"{PATH}/pg:/pg"]}}, f"volume {PATH}/pg"),
        ({"Driver": "docker", "Config": {"volumes": ["/data:/d:ro,rslave"]}}, "volume /data"),
        ({"Driver": "docker", "Config": {"volumes": ["/data/services-old:/d"]}}, None),
        ({"Driver": "docker", "Config": {"volumes": ["named:/data/x"]}}, None),
        (
            {"Config": {"mount": {"type": "bind", "source": PATH, "target": "/d"}}},
            f"mount {PATH}",
        ),
        (
            {"Config": {"mounts": [{"target": "/d", "source": f"{PATH}/a"}]}},
            f"mount {PATH}/a",
        ),
        ({"Config": {"mounts": [{"type": "tmpfs", "source": "", "target": "/d"}]}}, None),
        (
            {"Driver": "raw_exec", "Config": {"command": f"{PATH}/bin/run"}},
            "raw_exec configuration",
        ),
        (
            {"Driver": "raw_exec", "Config": {"args": ["-c", f"cd {PATH}; exec x"]}},
            "raw_exec configuration",
        ),
        ({"Driver": "exec", "Config": {"args": [f"--dir={PATH}"]}}, "exec configuration"),
        ({"Driver": "raw_exec", "Config": {"args": ["/data/services2"]}}, None),
        ({"Driver": "java", "Config": {"jar_path": f"{PATH}/a.jar"}}, "java configuration"),
        ({"Env": {"DATA": f"{PATH}/x"}}, "environment DATA"),
        (
            {"Templates": [{"EmbeddedTmpl": f"dir = '{PATH}'", "DestPath": "local/a.conf"}]},
            "template local/a.conf",
        ),
        ({"Templates": [{"SourcePath": f"{PATH}/t.tpl", "DestPath": "x"}]}, "template x"),
        ({"Config": None, "Env": None, "Templates": None, "VolumeMounts": None}, None),
        ({"Config": {"command": "/bin/sleep", "args": ["3600"]}}, None),
    ],
)
def test_what_a_task_says(task: dict[str, Any], how: str | None) -> None:
    assert used(job(task)) == ({} if how is None else {"t": how})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("/data/services", True),
        ("/data/services/", True),
        ("x=/data/services:ro", True),
        ("file:///data/services/a", True),
        ("see /data/services.", True),
        ("/data/services.old", False),
        ("/data/services-standby", False),
        ("/data/servicesx", False),
        ("/mnt/data/services", False),
        ("data/services", False),
    ],
)
def test_a_name_in_a_text_begins_and_ends_where_it_should(text: str, named: bool) -> None:
    assert mentions(text, PATH) is named
