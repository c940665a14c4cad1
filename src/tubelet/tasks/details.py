"""What lies behind a score, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tubelet.tasks.metrics import Score


def tables(score: Score, most: int = 10) -> RenderableType:
    """The classes with the lowest recall, the most confused pairs and the hardest clips, at most ``most`` of each."""
    recalls = sorted(score.recalls(), key=lambda recall: (recall.share, -recall.n))
    lowest = "recall by class" if len(recalls) <= most else f"lowest recall, of {len(recalls)} classes"
    by_class = _table(lowest, "class", ">right", ">of", ">recall")
    for recall in recalls[:most]:
        _row(by_class, recall.name, recall.right, recall.n, f"{100 * recall.share:.0f} %")
    pairs = _table("most confused", "true", "predicted", ">items", ">of")
    for pair in score.confused(most):
        _row(pairs, pair.true, pair.predicted, pair.n, pair.of)
    if not pairs.row_count:
        _row(pairs, "nothing", "", "", "")
    clips = _table("hardest clips", "key", "true", "predicted", ">p(true)")
    for clip in score.hardest(most):
        _row(clips, clip.key, clip.true, clip.predicted, f"{clip.probability:.3f}")
    return Group("", Columns([by_class, pairs], padding=(0, 4)), "", clips)


def _table(title: str, *columns: str) -> Table:
    look = {"box": box.SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0), "pad_edge": False}
    table = Table(title=title, title_justify="left", title_style="bold", **look)
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return table


def _row(table: Table, *cells: Sequence[str] | str | int) -> None:
    """Cells as they are: no markup, so that brackets in file names stay."""
    table.add_row(*(Text(str(cell)) for cell in cells))
