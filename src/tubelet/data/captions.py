"""What a manifest's ``caption`` column says about each item: one caption, or several as a JSON list."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence

from tubelet.core import Draw
from tubelet.data.table import Strings, Table
from tubelet.errors import DataError

COLUMN = "caption"


class Captions:
    """Of a table's items. Raises DataError where no item has one, and for a list that cannot be read."""

    def __init__(self, table: Table) -> None:
        self._column: Sequence[str] = table.extra.get(COLUMN, ())
        counts = [len(captions(text, table.keys[row])) for row, text in enumerate(self._column)]
        with_some = sum(count > 0 for count in counts)
        if not with_some:
            raise DataError(
                f"this masking or method needs captions, and none of the {len(table)} items has one: give a manifest with a column "
                f"`{COLUMN}`; `tubelet caption` writes one"
            )
        self.note = ""
        if with_some < len(table):
            several = f", {sum(counts)} in all" if sum(counts) > with_some else ""
            first = table.keys[next(row for row, count in enumerate(counts) if not count)]
            self.note = f"captions: {with_some} of {len(table)} items have some{several}; {len(table) - with_some} have none, e.g. {first}"

    def drawn(self, rows: Sequence[int], draw: Draw) -> tuple[str, ...]:
        """One caption for each sample, "" = none, by the draw ``data/caption`` bound to the samples."""
        return tuple(self._pick(row, u) for row, u in zip(rows, draw.uniform("data/caption").double().tolist(), strict=True))

    def first(self, rows: Sequence[int]) -> tuple[str, ...]:
        """The first caption of each row, "" = none."""
        return tuple(self._pick(row, 0.0) for row in rows)

    def _pick(self, row: int, u: float) -> str:
        found = captions(self._column[row], str(row))
        return found[int(u * len(found))] if found else ""

    def digest(self) -> str:
        """What identifies all of them."""
        return hashlib.blake2b(Strings(self._column).digest(), digest_size=16).hexdigest()


def captions(text: str, key: str) -> list[str]:
    """The captions of a value: those of a JSON list of strings, else itself; none where it is empty. A caption may begin with a bracket
    ("[laughs] ..."), but not with one before a quote. Raises DataError naming the item."""
    text = text.strip()
    if not text.startswith("["):
        return [text] if text else []
    try:
        found = json.loads(text)
    except ValueError as error:
        if re.match(r"\[\s*[\"']", text) is None:
            return [text]
        raise DataError(
            f'{key}: its captions begin like a JSON list and are none: {error}; write ["one", "another"], or a single caption'
        ) from None
    if not all(isinstance(caption, str) for caption in found):
        raise DataError(f'{key}: its captions are a list of other things than texts; write ["one", "another"]')
    return [stripped for caption in found if (stripped := caption.strip())]
