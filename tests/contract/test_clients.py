"""The client's work on the kernel's real mounts, in a mount namespace that ends with the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract.client_scene import HUNG_S, A, B
from tests.support import needs
from tests.support.checkout import CHECKOUT
from tests.support.figures import note
from tests.support.pace import patient
from tests.support.storage_node import VOLUME, StorageNode, run_handler

NO_ROOT = "needs root: it mounts, in a mount namespace of its own"
NO_UNSHARE = needs.why_no("unshare", "util-linux")
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or NO_UNSHARE is not None,
    reason=NO_ROOT if os.geteuid() != 0 else NO_UNSHARE or "",
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("client")
    argv = ["unshare", "-m", "--propagation", "private", sys.executable]
    done = subprocess.run(
        [*argv, "-m", "tests.contract.client_scene", root],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=patient(90.0),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_root
def test_the_path_shows_the_server_that_consul_names(told: Any) -> None:
    assert (told["first"], told["then"]) == (A, B)
    assert told["again"] == []


@needs_root
def test_the_old_mount_is_gone_and_its_open_file_is_not(told: Any) -> None:
    assert told["layers"] == 2, "the path and the bind mount, once each"
    assert told["old_file"] == A


@needs_root
def test_a_bind_mount_of_ours_follows_and_another_one_is_named(told: Any) -> None:
    assert (told["www"], told["other"]) == (B, A)
    assert any("other stays on the old server" in text for text in told["said"])


@needs_root
def test_who_holds_the_old_mount_is_named_before_and_found_afterwards(told: Any) -> None:
    assert any(f"(pid {told['user']}" in text for text in told["said"])
    assert told["user"] in told["holders"]


@needs_root
def test_a_container_that_keeps_the_old_mount_is_named(told: Any) -> None:
    [text] = [text for text in told["said"] if "namespace of its own" in text]
    assert str(told["boxed"]) in text or ".service" in text or ".scope" in text


@needs_root
def test_a_mount_that_hangs_keeps_nobody_from_the_new_server(told: Any) -> None:
    """One look at the hung mount is allowed its time-out, and none is needed."""
    assert told["last"] == A
    assert told["hung_s"] < HUNG_S
    note(f"away from a mount that hangs in {told['hung_s']:.1f} s")


# The handler, as `consul watch` runs it


@pytest.mark.parametrize(
    "given",
    [b"", b"null", b"\xff{]", b"[" * 1_000_000],
    ids=["nothing", "null", "garbage", "nested too deep"],
)
def test_the_handler_never_fails_and_what_stands_on_stdin_changes_nothing(
    tmp_path: Path, given: bytes
) -> None:
    """Its failure would end the watch; Consul is down here, and nothing is mounted."""
    node = StorageNode(tmp_path, "127.0.0.1:1", 20490)
    node.configure(client={"manage": "always"})
    node.file.write_text(node.file.read_text().replace('node = "n1"', 'node = ""'))
    ended = run_handler(
        "data-services-remount",
        "--volume",
        VOLUME,
        env=node.environment(),
        stdin=given,
        parts="Parts",
    )
    assert (ended.code, ended.out) == (0, ""), ended
    assert "consul-unreachable" in ended.said and "Traceback" not in ended.said
    assert [path.name for path in node.root.rglob("*.lock")] == ["remount.lock"]


def test_a_handler_that_can_not_even_take_its_lock_says_so_and_does_not_fail(
    tmp_path: Path,
) -> None:
    node = StorageNode(tmp_path, "127.0.0.1:1", 20490)
    config = node.configure()
    config.paths.run.parent.mkdir(parents=True)
    config.paths.run.write_text("no directory")
    ended = run_handler(
        "data-services-remount", "--volume", VOLUME, env=node.environment(), parts="Parts"
    )
    assert ended.code == 0 and "Traceback" not in ended.said
    assert str(config.paths.run) in ended.said


def test_a_run_of_the_timer_looks_after_every_volume_though_one_is_configured_wrongly(
    tmp_path: Path,
) -> None:
    node = StorageNode(tmp_path, "127.0.0.1:1", 20490)
    node.configure()
    node.file.write_text(node.file.read_text().replace('node = "n1"', 'node = ""'))
    (node.file.parent / "another.toml").write_text("{")
    done = subprocess.run(
        [sys.executable, "-m", "standfast", "remount", "--event", "timer"],
        env=node.environment(),
        capture_output=True,
        text=True,
        timeout=patient(20.0),
    )
    assert done.returncode == 2
    assert "another.toml" in done.stderr
    assert list(node.root.rglob("remount.lock"))
