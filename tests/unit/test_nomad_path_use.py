"""Which tasks use the volume's path, by everything that a job file can say."""

from __future__ import annotations

from typing import Any

import pytest

from standfast.nomad.path_use import mentions, uses

PATH = "/data/services"
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


def host(source: str, **more: Any) -> dict[str, Any]:
    return {"v": {"Type": "host", "Source": source, **more}}


@pytest.mark.parametrize(
    ("volumes", "used"),
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
def test_a_host_volume_by_where_it_lies_on_the_node(volumes: Any, used: bool) -> None:
    by_task = uses(job({"VolumeMounts": [{"Volume": "v"}]}, volumes), "g", PATH, VOLUMES)
    assert by_task == ({"t": f"host volume {volumes['v']['Source']}"} if used else {})


def test_a_volume_of_the_group_that_a_task_doesnt_mount_is_not_used_by_it() -> None:
    assert uses(job({}, host("services")), "g", PATH, VOLUMES) == {}


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
    assert uses(job(task), "g", PATH, VOLUMES) == ({} if how is None else {"t": how})


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
