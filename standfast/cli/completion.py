"""Completion scripts for bash, zsh and fish, generated from the table of commands.

They complete commands, options and the names of volumes, and start no program to do so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

from standfast.cli.commands import Argument, Command, visible


def run(args: argparse.Namespace) -> int:
    """`standfast completion SHELL`."""
    print(SHELLS[args.shell](), end="")
    return 0


def bash() -> str:
    """For `eval`, or a file in /usr/share/bash-completion/completions."""
    return f"""\
# bash completion of standfast
_standfast() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
  local command="" word words="" file
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    [[ $word == -* ]] && break
    command+="${{command:+ }}$word"
  done
  if [[ $previous == --volume ]]; then
    for file in "${{STANDFAST_CONFIG_DIR:-/etc/standfast}}"/*.toml; do
      [[ -r $file ]] && file=${{file##*/}} && words+=" ${{file%.toml}}"
    done
  else
    case $command in
{_cases('words="{}"')}
    esac
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}
complete -o default -F _standfast standfast
"""


def zsh() -> str:
    """For `eval` after compinit, or a file _standfast in a directory of $fpath."""
    return f"""\
#compdef standfast
_standfast() {{
  local -a names
  local command="" word
  for word in "${{(@)words[2,CURRENT-1]}}"; do
    [[ $word == -* ]] && break
    command+="${{command:+ }}$word"
  done
  if [[ $words[CURRENT-1] == --volume ]]; then
    names=( ${{STANDFAST_CONFIG_DIR:-/etc/standfast}}/*.toml(N:t:r) )
  else
    case $command in
{_cases("names=({})")}
    esac
  fi
  compadd -- $names
}}
compdef _standfast standfast
"""


def fish() -> str:
    """For `source`, or a file in ~/.config/fish/completions."""
    lines = ["# fish completion of standfast", "complete -c standfast -f"]
    for command in visible():
        first, _, second = command.name.partition(" ")
        seen = f"__fish_seen_subcommand_from {first}"
        if second:
            inner = f"{seen}; and not __fish_seen_subcommand_from {' '.join(_groups()[first])}"
            lines.append(_fish("", f"-n '{inner}'", f"-a {second}", command.help))
            seen += f"; and __fish_seen_subcommand_from {second}"
        else:
            lines.append(_fish("", "-n __fish_use_subcommand", f"-a {first}", command.help))
        for argument in command.arguments:
            lines += _fish_argument(argument, seen)
    for group, parts in _groups().items():
        lines.append(_fish("", "-n __fish_use_subcommand", f"-a {group}", ", ".join(parts)))
    return "\n".join(lines) + "\n"


SHELLS: Mapping[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def _fish_argument(argument: Argument, seen: str) -> list[str]:
    if argument.is_option:
        takes = "-r " if argument.metavar and argument.kind != "maybe seconds" else ""
        return [_fish(takes, f"-n '{seen}'", f"-l {argument.name[2:]}", argument.help)]
    if argument.choices:
        choices = " ".join(argument.choices)
        return [_fish("", f"-n '{seen}'", f"-a '{choices}'", argument.help)]
    return []


def _fish(takes: str, condition: str, what: str, text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"complete -c standfast {condition} {takes}{what} -d '{quoted}'"


def _cases(assignment: str) -> str:
    """The branches of `case $command`, which bash and zsh read alike."""
    first = assignment.format(" ".join([*_first_words(), "--help", "--version"]))
    lines = [f'      "") {first} ;;']
    for group, parts in _groups().items():
        lines.append(f'      "{group}") {assignment.format(" ".join(parts))} ;;')
    for command in visible():
        words = assignment.format(" ".join(_words(command)))
        lines.append(f'      "{command.name}" | "{command.name} "*) {words} ;;')
    return "\n".join(lines)


def _words(command: Command) -> Sequence[str]:
    options = [argument.name for argument in command.arguments if argument.is_option]
    choices = [choice for argument in command.arguments for choice in argument.choices]
    return [*choices, *options, "--help"]


def _groups() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for command in visible():
        first, _, second = command.name.partition(" ")
        if second:
            found.setdefault(first, []).append(second)
    return found


def _first_words() -> Sequence[str]:
    return list(dict.fromkeys(command.name.partition(" ")[0] for command in visible()))
