from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from standfast.cli.commands import COMMANDS, visible
from standfast.cli.completion import SHELLS, bash, fish, zsh
from standfast.cli.documents import man_page, markdown, pages
from standfast.reasons import Reason
from tests.support import needs

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_page_in_the_repository_is_the_generated_one(name: str) -> None:
    assert (DOCS / name).read_text() == pages()[name], "python -m standfast.cli.documents docs"


def test_the_reason_codes_page_explains_each_code_once_and_no_other() -> None:
    codes = re.findall(
        r"(?m)^\| `([a-z-]+)` \| (.+) \| (.+) \|$", (DOCS / "reason-codes.md").read_text()
    )
    assert sorted(code for code, _, _ in codes) == sorted(str(reason) for reason in Reason)
    assert all(
        meaning.rstrip("`").endswith((".", "?")) and todo.rstrip("`").endswith((".", "?"))
        for _, meaning, todo in codes
    )


def test_the_pages_know_every_command_and_option() -> None:
    for command in COMMANDS:
        assert f"standfast {command.name}" in markdown()
    for command in visible():
        for text in (markdown(), man_page().replace("\\-", "-")):
            assert f"standfast {command.name}" in text
            for argument in command.arguments:
                assert argument.name in text or argument.metavar in text


@needs.tool("groff", "groff-base")
def test_the_man_page_is_clean_for_groff() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww"], input=man_page(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def complete(*words: str, config_dir: Path | None = None) -> list[str]:
    """What bash offers for the last of these words."""
    script = f"""{bash()}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
COMP_CWORD={len(words) - 1}
STANDFAST_CONFIG_DIR='{config_dir or ""}'
_standfast
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_options_and_volumes(tmp_path: Path) -> None:
    assert complete("standfast", "s") == ["status", "switchover", "standby", "snapshots"]
    assert "agent" not in complete("standfast", "")
    assert complete("standfast", "config", "") == ["check", "example"]
    assert complete("standfast", "switchover", "--t") == ["--timeout", "--to"]
    assert complete("standfast", "replicate", "c1", "--f") == ["--full"]
    assert complete("standfast", "completion", "z") == ["zsh"]
    assert complete("standfast", "status", "--volume", "", config_dir=tmp_path) == []
    (tmp_path / "data-services.toml").touch()
    (tmp_path / "media.toml").touch()
    offered = complete("standfast", "status", "--volume", "", config_dir=tmp_path)
    assert offered == ["data-services", "media"]


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_each_shell_s_script_knows_every_command_and_parses(shell: str) -> None:
    script = SHELLS[shell]()
    for command in visible():
        for argument in command.arguments:
            if argument.is_option:
                assert argument.name.lstrip("-") in script
    needs.require({shell: shell})
    done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_quotes_in_a_help_text_do_not_end_fish_s_string() -> None:
    assert "the standbys\\' data" in fish()


def test_the_shells_get_scripts_of_their_own() -> None:
    assert len({bash(), zsh(), fish()}) == 3
