"""What a file handle of an earlier tree opens on a real kernel: why each tree has its own fsid.

Two file systems are made by the same steps, so that the ids and generations of their subvolumes and
files collide, as those of a primary and its successor may. The one takes the other's place below an
export while the server restarts.
"""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.labs.kernels.cluster import AGENT, KernelCluster
from tests.support.commands import wait_for

PLACE = "/mnt/place"
SEEN = "/mnt/seen"
EXPORTS = "/etc/exports.d/handles.exports"
MAKE = f"""
for tree in a b; do
  rm -f /persist/$tree.img
  truncate -s 120M /persist/$tree.img
  mkfs.btrfs -q -m single -d single /persist/$tree.img >/dev/null
  mkdir -p {PLACE}
  mount -o loop /persist/$tree.img {PLACE}
  btrfs -q subvolume create {PLACE}/tree >/dev/null
  echo "from $tree" >{PLACE}/tree/file
  sync -f {PLACE}
  stat -c '%i' {PLACE}/tree/file
  umount {PLACE}
done
"""
READER = """
import errno, os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
print("first", os.pread(fd, 100, 0).decode().strip(), flush=True)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.2)
try:
    print("then", os.pread(fd, 100, 0).decode().strip(), flush=True)
except OSError as error:
    print("then", errno.errorcode[error.errno], flush=True)
"""


def export(cluster: KernelCluster, tree: str, fsid: str) -> None:
    """Restart n1's server with this tree in the place; the agent mustn't start it meanwhile."""
    n1 = cluster["n1"]
    n1.freeze_unit(AGENT)
    try:
        n1.run("systemctl", "stop", "nfs-server", timeout_s=60.0)
        n1.sh(f"mkdir -p {PLACE}; umount {PLACE} 2>/dev/null || true")
        n1.sh(f"mount -o loop /persist/{tree}.img {PLACE}")
        n1.write(EXPORTS, f"{PLACE}/tree *(rw,no_subtree_check,no_root_squash,fsid={fsid})\n")
        # A virtual machine may be too slow for the guard's three seconds: it refuses then.
        start = ("systemctl", "start", "nfs-server")
        wait_for(
            lambda: n1.run(*start, timeout_s=60.0, check=False).returncode == 0,
            60.0,
            "the server with the other tree",
        )
    finally:
        n1.thaw_unit(AGENT)


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned fsid", "fsid of the tree"])
def test_an_old_handle_opens_another_file_only_where_the_fsid_is_pinned(
    cluster: KernelCluster, pinned: bool
) -> None:
    c1, n1 = cluster["c1"], cluster["n1"]
    inodes = n1.sh(MAKE, timeout_s=60.0).split()
    assert inodes[0] == inodes[1], "the files don't collide"
    fsid = str(uuid4())
    export(cluster, "a", fsid)
    c1.sh(f"mkdir -p {SEEN}")
    source = f"{n1.address}:{PLACE}/tree"
    c1.run("mount", "-t", "nfs4", "-o", "vers=4.1,hard", source, SEEN, timeout_s=60.0)
    name = f"/root/handle-{fsid}"
    try:
        argv = ["/usr/bin/python3", "-ISc", READER, f"{SEEN}/file", f"{name}.go"]
        c1.control.detach(argv, f"{name}.log")
        wait_for(lambda: "first from a" in c1.read(f"{name}.log"), 60.0, "the file is open")
        export(cluster, "b", fsid if pinned else str(uuid4()))
        c1.sh(f"touch {name}.go")
        wait_for(lambda: "then" in c1.read(f"{name}.log"), 90.0, "it is read again")
        then = c1.read(f"{name}.log").splitlines()[-1]
        if pinned:
            assert then == "then from b", "this file system's handles don't collide any more"
        else:
            # EBADF where the client has given up the open's state before it reads again.
            assert then in ("then ESTALE", "then EIO", "then EBADF")
    finally:
        c1.run("umount", "-l", SEEN, check=False)
        n1.run("rm", "-f", EXPORTS)
        n1.sh("exportfs -r; exportfs -f", check=False)
