"""What we read of a file of exports(5) is what the real exportfs has in its table.

In namespaces of its own, as `nfs.ahead` has it: nothing is exported.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standfast.nfs.ahead import ALONE
from standfast.nfs.exports_file import entries
from standfast.system.lines import fields_of, lines_of, unescaped
from tests.support import needs
from tests.support.examples import examples

pytestmark = [
    needs.tool("exportfs", "nfs-kernel-server"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, and mounts in them"),
]

PLACES = ("/mnt/services", "/mnt/x", "/mnt/services#old", "/mnt/services/b c", "/mnt/b")
"""They are there, so that exportfs, which asks the disk, leaves out what names them otherwise."""
TABLE = """set -e
mount -t tmpfs tmpfs /mnt
for place in "$@"; do mkdir -p "$place"; done
mount -t tmpfs tmpfs /var/lib/nfs
cat > /var/lib/nfs/given
if [ -e /etc/exports ]; then mount --bind /dev/null /etc/exports; fi
mount -t tmpfs tmpfs /etc/exports.d
cp /var/lib/nfs/given /etc/exports.d/a.exports
exportfs -r || true
cat /var/lib/nfs/etab
"""


def table(text: bytes) -> set[str]:
    """The paths in exportfs's table."""
    for directory in ("/etc/exports.d", "/var/lib/nfs"):
        Path(directory).mkdir(exist_ok=True)
    argv = ["unshare", *ALONE, "sh", "-c", TABLE, "sh", *PLACES]
    done = subprocess.run(argv, input=text, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return {unescaped(fields_of(line)[0]) for line in lines_of(os.fsdecode(done.stdout))}


def read(text: bytes) -> set[str]:
    return {str(entry.path) for entry in entries(os.fsdecode(text))}


NAMES = ["services", "services#old", "#", "services\xa0old", "services\u2028x", "services\x1cold",
         "services\x85", '"services/b c"', "services/b\\040c", 'ser"vi"ces', '"services#old"', "x",
         "serv\\151ces", "b\\134061", "\\12\\061", "b\\000c", "x\\\\", "\\400", "x\\777",
         "services\\", '"x\\\n  b"', '"x\nb"']  # fmt: skip
JOINTS = ["", "/", "//", "/.", "/./", "/x/..", "/x/../services/.."]
PATHS = st.builds(
    lambda first, joint, name, end: f"{first}{joint}/{name}{end}",
    st.sampled_from(["/mnt", "//mnt", "///mnt", '"/mnt"', "/mnt/services"]),
    st.sampled_from(JOINTS),
    st.sampled_from(NAMES),
    st.sampled_from(["", "", "", "/", "//", "/."]),
)
CLIENTS = st.sampled_from(
    ["*(ro)", "1.2.3.4", "-ro 1.2.3.4 1.2.3.5", "*(ro,sync)#x", "1.2.3.4 #\\", "# c", "", "-ro",
     '1.2.3.4 "1.2.3.5"(ro) #', '1.2.3.4 \v\v/mnt/b', '"" 1.2.3.4', "\r1.2.3.4"]
)  # fmt: skip
BLANKS = st.sampled_from([" ", "\t", "  ", " \\\n  ", "\\\n", " \\\n\t\\\n "])
ENDS = st.sampled_from(
    ["\n", "\n", "\n\n", "\r\n", " \n", "\n # \\\n", "\n\\\n", "\n\v\n", "\\\n\n"]
)
LINES = st.builds(
    lambda begin, path, blank, clients, end: f"{begin}{path}{blank}{clients}{end}",
    st.sampled_from(["", "", " ", "\t", "\\\n "]),
    PATHS,
    BLANKS,
    CLIENTS,
    ENDS,
)


def without_refusals(text: bytes) -> bool:
    """exportfs reads no further than to what it refuses; that we do is said in `exports_file`."""
    return b")#" not in text


@examples(60)
@given(
    st.lists(LINES, min_size=1, max_size=3).map("".join).map(os.fsencode).filter(without_refusals)
)
def test_the_paths_of_a_file_are_those_of_exportfs_table(text: bytes) -> None:
    # exportfs leaves the path of what isn't there as it is written.
    assert read(text) == {os.path.normpath(path).replace("//", "/") for path in table(text)}


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("/mnt/services#old *(ro)", ["/mnt/services#old"]),
        ("/mnt/services\xa0old *(ro)", ["/mnt/services\xa0old"]),
        ("/mnt/services\u2028x *(ro)", ["/mnt/services\u2028x"]),
        ("/mnt/services\x1cold *(ro)", ["/mnt/services\x1cold"]),
        ("/mnt/x/../services *(ro)", ["/mnt/services"]),
        ("//mnt//services/ *(ro)", ["/mnt/services"]),
        ('"/mnt/services#old" *(ro)', ["/mnt/services#old"]),
        ("/mnt/b *(ro) # /mnt/x\n/mnt/services", ["/mnt/b", "/mnt/services"]),
        ("/mnt/b *(ro)\r\n\r\n/mnt/services *(ro)", ["/mnt/b"]),
        ("/mnt/b *(ro) \r/mnt/services *(ro)", ["/mnt/b", "/mnt/services"]),
    ],
)
def test_a_name_is_parted_where_exportfs_parts_it(line: str, paths: Iterable[str]) -> None:
    text = os.fsencode(f"{line}\n")
    assert read(text) == table(text) == set(paths)
