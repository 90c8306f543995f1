"""The whole demo, for real: it ends well, it fails loudly, and it leaves nothing behind."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from standfast.demo import main as demo
from standfast.demo.cluster import Cluster
from standfast.demo.invariants import ONE_SERVER, Broken
from standfast.demo.stand_ins.embedded import EmbeddedNfs
from standfast.demo.story import Times, first_promotion
from standfast.system.clock import monotonic
from standfast.system.run import Child, start_detached
from tests.contract.demo_scene import processes_of, program, quiet_cluster, scratch_base
from tests.support.checkout import CHECKOUT
from tests.support.figures import note
from tests.support.pace import patient

REFUSAL = """ERROR: Another NFS server is already active at 127.0.0.{host}
    | This host (127.0.0.1) is configured as NFS server but should be standby.
    | To fix:
    |   1. If this is intentional (failback), first demote the other server
    |   2. Update this host's config to use nfs-services-standby.nix instead
    |   3. Sync data from active server before promoting this host"""


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the demo makes its directory; afterwards nothing of it is left."""
    with scratch_base(monkeypatch) as base:
        yield base


def test_the_demo_fails_over_refuses_the_old_primary_and_goes_back_without_loss() -> None:
    out = io.StringIO()
    begun = monotonic()
    status = demo.play(out)
    text = out.getvalue()
    assert status == 0, text
    note(f"the demo took {monotonic() - begun:.0f} s")
    assert any(REFUSAL.format(host=host) in text for host in (2, 3))
    assert "lines lost: 0" in text
    assert re.search(r"history: epoch 1 zippy .*; epoch 2 c[12] \(takeover.*; epoch 3 zippy", text)
    for handler in ("data-services-changed", "storage-role-changed"):
        assert f"handlers/{handler} on zippy, c1, c2" in text
    assert "failed" not in text
    assert "`make lab` does it with real parts" in text


def test_a_second_server_behind_an_open_fence_is_found_while_it_runs() -> None:
    with quiet_cluster() as cluster:
        first_promotion(cluster, Times())
        rogue = cluster["c1"]
        # What no part of Standfast does: an export, an open fence and a server, by hand; and again
        # and again, as the agent's upkeep takes them away within seconds.
        nfs, servers = EmbeddedNfs(rogue.config), list[Child]()
        fence = rogue.config.paths.run / "fence" / f"port-{rogue.config.nfs.port}.fence"
        argv = [sys.executable, "-m", "standfast.demo.stand_ins.file_server", rogue.config.volume]
        log, env = cluster.base / "rogue.log", rogue.environment()

        def open_by_force() -> bool:
            if not nfs.would_export():
                nfs.export("rogue")
            if not servers or servers[-1].poll() is not None:
                servers.append(start_detached(argv, op="rogue", log_file=log, env=env))
            if fence.parent.exists():
                fence.write_text(f'{{"v": 1, "until": {monotonic() + 60}}}')
            return False

        with pytest.raises(Broken) as caught:
            cluster.wait_for("the second server is found", patient(30.0), open_by_force)
        assert caught.value.name == ONE_SERVER
        assert "c1 answered" in str(caught.value)


def test_data_that_is_lost_ends_the_demo_with_status_1_and_the_evidence(
    monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    def tell_with_a_loss(cluster: Cluster) -> Times:
        cluster.start()
        cluster.wait_for("an agent answers", patient(30.0), lambda: bool(cluster["c1"].status()))
        cluster._look_at_trees()
        live = cluster["zippy"].config.paths.live
        live.rename(live.with_name("elsewhere"))
        cluster.wait_for("the loss is found", patient(30.0), lambda: False)
        return Times()

    monkeypatch.setattr(demo, "tell", tell_with_a_loss)
    out = io.StringIO()
    assert demo.play(out, keep=True) == 1
    assert "THE DEMO FAILED: INVARIANT BROKEN: no data is deleted: " in out.getvalue()
    assert "--- c1/var/log/agent.log" in out.getvalue()
    kept = Path(out.getvalue().rsplit("Kept: ", 1)[1].strip())
    assert kept.parent == scratch
    assert (kept / "zippy/persist/elsewhere/settings.ini").stat().st_size > 0
    shutil.rmtree(kept)


@pytest.mark.parametrize(
    ("number", "when"), [(signal.SIGINT, "promotion 6/9"), (signal.SIGHUP, "agents run on")]
)
def test_an_interrupted_demo_cleans_up(number: signal.Signals, when: str, scratch: Path) -> None:
    with subprocess.Popen(
        program(),
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, "TMPDIR": str(scratch)},
    ) as process:
        assert process.stdout is not None
        assert any(when in line for line in process.stdout)
        assert processes_of(scratch)
        process.send_signal(number)
        process.stdout.read()
        assert process.wait(patient(20.0)) == 130
