from __future__ import annotations

import re
from pathlib import Path

from standfast.config.example import example
from standfast.config.load import load
from standfast.config.model import FAST_PROFILE, Config, Node
from standfast.config.options import sections
from standfast.config.rules import RULES
from tools.config_reference import reference


def load_text(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "data-services.toml"
    path.write_text(text)
    return load(path, node="zippy")


def defaults(tmp_path: Path) -> Config:
    return Config(
        volume="data-services",
        source=tmp_path / "data-services.toml",
        cluster="alo",
        node="zippy",
        nodes={"zippy": Node(address="192.168.1.2"), "c1": Node(address="192.168.1.3")},
    )


def test_the_example_parses_back_to_the_defaults(tmp_path: Path) -> None:
    assert load_text(tmp_path, example("data-services")) == defaults(tmp_path)


def test_the_example_with_its_defaults_put_in_parses_to_the_same(tmp_path: Path) -> None:
    text, count = re.subn(r"(?m)^#(?=[a-z])", "", example("data-services"))
    assert count > 30
    assert load_text(tmp_path, text) == defaults(tmp_path)


def test_the_fast_profile_of_the_example_parses_to_the_fast_profile(tmp_path: Path) -> None:
    text, count = re.subn(r"(?m)^#   (?=[a-z])", "", example("data-services"))
    assert count == 5
    assert load_text(tmp_path, text).lease == FAST_PROFILE


def test_the_example_and_the_reference_know_every_key() -> None:
    for text in (example("data-services"), reference()):
        for section in sections():
            for option in section.options:
                assert option.help, option.name
                assert re.search(rf"(?m)^(# ?|\| `)?{option.name}\b", text), option.name


def test_the_reference_has_every_rule() -> None:
    assert reference().count("\n- ") == len(RULES) + 3
