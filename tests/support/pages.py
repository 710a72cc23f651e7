"""README.md, SECURITY.md and docs/: their texts and the commands in them."""

from __future__ import annotations

import re

from tests.support import ROOT

FILES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in FILES}


def section(page: str, title: str) -> str:
    """The text of a page's section."""
    return re.search(rf"## {title}\n(.*?)(?=\n## |\Z)", PAGES[page], re.DOTALL)[1]


def blocks(text: str, language: str) -> list[str]:
    """The blocks of a text in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def lines(text: str) -> list[str]:
    """The command lines in a text's blocks, continued ones joined, without remarks."""
    joined = [block.replace("\\\n", "") for block in blocks(text, "bash")]
    every = [" ".join(line.partition("#")[0].split()) for block in joined for line in block.splitlines()]
    return [line for line in every if line]
