"""Writes what the documentation says about settings, recipes and commands from the code itself.

    python docs/generate.py           writes docs/settings/*.md, the tables in docs/cli.md and docs/data.md, docs/images/*.svg
    python docs/generate.py --check   writes nothing; names what is out of date and exits with 1

The files are committed, so that they can be read where the code is hosted; tests/docs checks that they are up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from _make import commands, house, pages

DOCS = Path(__file__).resolve().parent
WHOLE: dict[str, Callable[[], str]] = {
    "settings/index.md": pages.index_page,
    "settings/recipes.md": pages.recipe_page,
    "settings/method.md": pages.method_page,
    "settings/masking.md": pages.masking_page,
    "settings/guides.md": pages.guide_page,
    "settings/data.md": pages.data_page,
    "settings/train.md": pages.train_page,
    "settings/scenes.md": pages.scene_page,
    "images/house.svg": house.draw,
    "images/flow.svg": house.draw_flow,
}
WITHIN: dict[str, Callable[[str], str]] = {"cli.md": commands.cli_page, "data.md": pages.data_tables}


def files() -> dict[Path, str]:
    """Every file that is written, with its text."""
    made = {DOCS / name: make() for name, make in WHOLE.items()}
    return made | {DOCS / name: put(read(DOCS / name)) for name, put in WITHIN.items()}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def stale() -> dict[Path, str]:
    """The files that are not as they would be written."""
    return {path: text for path, text in files().items() if read(path) != text}


def main(args: Sequence[str]) -> int:
    old = stale()
    if "--check" in args:
        sys.stdout.writelines(f"out of date: {path.relative_to(DOCS.parent)}; run python docs/generate.py\n" for path in old)
        return 1 if old else 0
    for path, text in old.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote {path.relative_to(DOCS.parent)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
