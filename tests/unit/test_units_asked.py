"""What the service manager says of a unit and of what that requires, as systemctl prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from standfast.errors import StandfastError
from standfast.system.systemd import SystemdUnits
from tests.support.scripts import script

SYSTEMCTL = r"""
case "$*" in
  *Requires*) cat {said} ;;
  *Id,LoadState*)
    shift 3
    for unit; do
      state=loaded
      while read -r name told; do [ "$name" != "$unit" ] || state=$told; done < {states}
      printf '%s\n' "" "Id=$unit" "LoadState=$state"
    done ;;
esac
"""


def told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, states: str = ""
) -> str | None:
    (tmp_path / "said").write_text(said)
    (tmp_path / "states").write_text(states)
    text = SYSTEMCTL.format(said=tmp_path / "said", states=tmp_path / "states")
    script(tmp_path / "bin/systemctl", text)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    return SystemdUnits().obstacle("nfs-server.service")


LOADED = "Requires=nfs-mountd.service proc-fs-nfsd.mount\nBindsTo={}\nLoadState=loaded\n"
NO_SUCH = r"""system-standfast\x2dlease.slice not-found
system-standfast\\x2dlease.slice not-found
"system-standfast\\x2dlease.slice" not-found
"""


@pytest.mark.parametrize(
    ("said", "states", "words"),
    [
        ("LoadState=masked\n", "", "nfs-server.service is masked"),
        ("Requires=\nLoadState=loaded\n", "", None),
        (LOADED.format(""), "", None),
        (
            LOADED.format(""),
            "nfs-mountd.service masked\n",
            "nfs-server.service requires nfs-mountd.service, which is masked",
        ),
        (LOADED.format("a.device"), "a.device not-found\n", "requires a.device, which is not-f"),
        # However systemctl writes a backslash: the name would be wrong, and it no such unit.
        (LOADED.format(r'"system-standfast\\x2dlease.slice"'), NO_SUCH, None),
        (LOADED.format(r"system-standfast\x2dlease.slice"), NO_SUCH, None),
    ],
)
def test_what_a_unit_requires_is_asked_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, states: str, words: str | None
) -> None:
    obstacle = told(tmp_path, monkeypatch, said, states)
    assert (obstacle is None) == (words is None), obstacle
    assert words is None or words in str(obstacle)


def test_a_manager_that_does_not_say_is_no_sign_that_a_unit_could_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StandfastError, match="does not tell"):
        told(tmp_path, monkeypatch, "")
