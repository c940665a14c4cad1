"""What docs/generate.py is made of."""

from __future__ import annotations

from collections.abc import Sequence

MADE = "<!-- Written by docs/generate.py from the code: change it there. -->"
BY = ", written by docs/generate.py -->"
END = "<!-- end of what docs/generate.py writes -->"


def marked(name: str, body: Sequence[str]) -> str:
    """Lines between two marks, so that they can be found and replaced."""
    return "\n".join([f"<!-- {name}{BY}", "", *body, "", END])
