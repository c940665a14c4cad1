"""A Markdown extension for the marks that tests/docs reads in code fences: ``bash no-run: reason`` and ``python file=NAME``.

Readers of the site see plain highlighted code, with the file's name above it.
"""

from __future__ import annotations

import re

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

MARK = re.compile(r"^(?P<fence>`{3,}\w+) (?:no-run\b.*|file=(?P<file>\S+))$")


class Marks(Preprocessor):
    """Takes the marks from the lines that open a fence."""

    def run(self, lines: list[str]) -> list[str]:
        return [MARK.sub(_plain, line) for line in lines]


def _plain(match: re.Match[str]) -> str:
    return match["fence"] + (f' title="{match["file"]}"' if match["file"] else "")


class Fences(Extension):
    """Runs before the extension that finds fences."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(Marks(md), "tubelet_marks", 40)


def makeExtension(**settings: object) -> Fences:
    return Fences(**settings)
