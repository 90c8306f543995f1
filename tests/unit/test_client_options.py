"""What the options of [client] change in a remount: time-outs, who is restarted, the port."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from standfast.clients import notes
from standfast.config.client import Client
from standfast.config.model import Nfs
from standfast.system.clock import Deadline
from tests.fakes.client import FakeClient, fake_client

A, B = "192.168.1.2", "192.168.1.3"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("standfast.clients.loop.sleep", lambda _: None)


def moved(directory: Path, **options: object) -> FakeClient:
    """A client of A that is about to find that B serves; two services use the mount."""
    client = fake_client(directory, **options)
    client.dependants_, client.running = ("db.service",), ("web.service",)
    client.serve(A, 1, 1)
    old = client.mounted(A, 1)
    client.bound(old, Path("/srv/a"))
    client.run()
    client.log.clear()
    client.given_s.clear()
    client.serve(B, 2, 2)
    return client


def restarted(client: FakeClient) -> list[str]:
    return [entry for entry in client.log if entry.startswith("restart")]


def test_nothing_takes_longer_than_its_time_out(tmp_path: Path) -> None:
    client = moved(tmp_path, command_timeout=20.0, binds=("/srv/a",))
    client.run()
    assert client.is_right()
    limits = {"let-go": 10.0, "mount": 10.0, "bind": 10.0, "probe": 5.0, "restart": 20.0}
    assert client.given_s.keys() == limits.keys()
    assert [kind for kind, given in client.given_s.items() if not 0 < given <= limits[kind]] == []


@pytest.mark.parametrize(("units", "expected"), [
    ((), []),
    (("web.service",), ["restart:web.service"]),
])  # fmt: skip
def test_services_that_require_the_path_are_left_alone_where_that_was_asked_for(
    tmp_path: Path, units: tuple[str, ...], expected: list[str]
) -> None:
    client = moved(tmp_path, restart_dependants=False, restart_units=units)
    client.run()
    assert client.is_right()
    assert restarted(client) == expected


def test_services_that_require_the_path_are_restarted_without_a_word(tmp_path: Path) -> None:
    client = moved(tmp_path)
    client.run()
    assert restarted(client) == ["restart:db.service"]


def test_a_server_on_another_port_is_mounted_by_that(tmp_path: Path) -> None:
    client = moved(tmp_path)
    client.config = replace(client.config, nfs=Nfs(port=20490))
    client.run()
    [mounted] = [entry for entry in client.log if entry.startswith("mount:")]
    assert mounted.endswith(":nosuid,nodev,vers=4.2,hard,port=20490,retry=0")


def test_set_uid_programs_work_where_jobs_need_them(tmp_path: Path) -> None:
    client = moved(tmp_path, nosuid=False)
    client.run()
    [mounted] = [entry for entry in client.log if entry.startswith("mount:")]
    assert mounted.endswith(":vers=4.2,hard,retry=0")


def test_what_the_options_say_themselves_goes_before(tmp_path: Path) -> None:
    """Of two words for one thing mount(8) takes the last."""
    assert Client(options="vers=4.2,hard,dev").mount_options == "nosuid,nodev,vers=4.2,hard,dev"


def test_a_port_that_the_unit_names_is_not_named_twice(tmp_path: Path) -> None:
    client = moved(tmp_path)
    client.config = replace(client.config, nfs=Nfs(port=20490))
    client.unit_options = "vers=4.1,hard,port=2050"
    client.run()
    [mounted] = [entry for entry in client.log if entry.startswith("mount:")]
    assert mounted.endswith(":vers=4.1,hard,port=2050,retry=0")


def test_a_mount_that_hangs_right_after_it_was_made_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies in between: nobody is restarted to hang there, and the next run goes on."""
    client = moved(tmp_path)
    mount = client.mount

    def and_dies(source: str, path: Path, options: str, deadline: Deadline) -> None:
        mount(source, path, options, deadline)
        client.trees[B] = None

    monkeypatch.setattr(client, "mount", and_dies)
    client.run()
    assert restarted(client) == []
    noted = notes.load(client.config.run_dir)
    assert noted is not None and (noted.epoch, noted.let_go) == (1, True)
    client.trees[B] = 2
    client.run()
    assert restarted(client) == ["restart:db.service"]
