from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from standfast.cli.commands import COMMANDS, visible
from standfast.cli.completion import PLACES
from standfast.cli.main import main
from standfast.reasons import Reason
from tests.support import needs
from tests.support.checkout import CHECKOUT
from tests.support.pace import patient
from tools.completion import script
from tools.documents import markdown, pages
from tools.man_page import man_page

DOCS = CHECKOUT / "docs"
CONFIGURATION = """\
[nodes.zippy]
address = "192.168.1.2"
 [nodes."c1"]
address = "192.168.1.3"
[nodes_of_others.x]
"""


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_generated_file_in_the_project_is_up_to_date(name: str) -> None:
    assert (CHECKOUT / name).read_text() == pages()[name], "python -m tools.documents"


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


def run(shell: str, program: str, config_dir: Path) -> list[str]:
    """The lines that a shell's program prints, which must print no error."""
    needs.require({shell: shell})
    done = subprocess.run(
        [shell, "-c", program],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(config_dir),
            "STANDFAST_CONFIG_DIR": str(config_dir),
        },
        capture_output=True,
        text=True,
        timeout=patient(30.0),
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


def complete(*words: str, config_dir: Path = Path("/none")) -> list[str]:
    """What bash offers for the last of these words."""
    program = f"""{script("bash")}
compopt() {{ :; }}  # of a running completion only
COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
COMP_CWORD={len(words) - 1}
_shtab_standfast
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    return [offer for offer in run("bash", program, config_dir) if offer]


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A directory with two volumes and two nodes."""
    (tmp_path / "data-services.toml").write_text(CONFIGURATION)
    (tmp_path / "media.toml").write_text(CONFIGURATION)
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_bash_completes_commands_and_options() -> None:
    known = ["status", "switchover", "standby", "snapshots", "setup"]
    assert complete("standfast", "s") == known
    assert "agent" not in complete("standfast", "")
    assert complete("standfast", "config", "") == ["check", "example"]
    assert complete("standfast", "switchover", "--t") == ["--timeout", "--to"]
    assert complete("standfast", "replicate", "c1", "--f") == ["--full"]
    assert complete("standfast", "completion", "z") == ["zsh"]


def test_bash_completes_volumes_and_nodes(configuration: Path) -> None:
    volumes, nodes = ["data-services", "media"], ["c1", "zippy"]
    assert complete("standfast", "status", "--volume", "") == []
    assert complete("standfast", "status", "--volume", "", config_dir=configuration) == volumes
    assert complete("standfast", "switchover", "--to", "") == []
    assert complete("standfast", "switchover", "--to", "", config_dir=configuration) == nodes
    assert complete("standfast", "verify", "z", config_dir=configuration) == ["zippy"]
    (configuration / "media.toml").write_text('nodes.c2.address = "10.0.0.3"\n# nodes.c3\n')
    assert complete("standfast", "standby", "add", "c", config_dir=configuration) == ["c1", "c2"]
    assert complete("standfast", "standby", "remove", "", config_dir=configuration) == []


def test_fish_completes_commands_volumes_and_nodes(configuration: Path) -> None:
    def offered(line: str) -> list[str]:
        lines = run("fish", f"{script('fish')}\ncomplete -C '{line}'", configuration)
        return [line.partition("\t")[0] for line in lines]

    assert offered("standfast sw") == ["switchover"]
    assert offered("standfast status --volume ") == ["data-services", "media"]
    assert offered("standfast switchover --to ") == ["c1", "zippy"]
    assert offered("standfast verify ") == ["c1", "zippy"]


def test_zsh_asks_for_volumes_and_nodes(configuration: Path) -> None:
    (configuration / "_standfast").write_text(script("zsh"))
    stand_ins = "compdef() { : }\ncompadd() { print -l -- $@[2,-1] }"
    program = f'{stand_ins}\neval "$(<{configuration}/_standfast)"\n'
    assert run("zsh", f"{program}_standfast_volumes", configuration) == ["data-services", "media"]
    assert run("zsh", f"{program}_standfast_nodes", configuration) == ["c1", "zippy"]
    text = script("zsh")
    assert '"--to[' in text and ":NODE:_standfast_nodes" in text
    assert ":VOLUME:_standfast_volumes" in text


@pytest.mark.parametrize("shell", sorted(PLACES))
def test_the_script_of_each_shell_knows_every_option_and_parses(shell: str) -> None:
    for command in visible():
        for argument in command.arguments:
            if argument.is_option:
                assert argument.name.lstrip("-") in script(shell)
    needs.require({shell: shell})
    done = subprocess.run([shell, "-n"], input=script(shell), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", sorted(PLACES))
def test_the_command_prints_the_shipped_script(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == script(shell)
