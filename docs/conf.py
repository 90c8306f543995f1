"""Sphinx: `make docs` builds the pages as they are read in the repository, links included."""

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads(Path(__file__).parent.with_name("pyproject.toml").read_text())["project"]

project = "Standfast"
author = _PROJECT["authors"][0]["name"]
release = version = _PROJECT["version"]
extensions = ["myst_parser"]
# The root of the repository is the source: README and DESIGN are pages, too.
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/notes/*.md"]
html_theme = "furo"
html_title = f"Standfast {version}"
# The links to sections are those that GitHub makes.
myst_heading_anchors = 4
myst_enable_extensions = ["tasklist"]
# `console` blocks without a language are commands with their comments, which no lexer takes.
highlight_language = "none"
