"""What a manifest's ``caption`` column says of an item: one text, or several as a JSON list."""

from __future__ import annotations

import json
import re

from tubelet.errors import DataError

COLUMN = "caption"


def captions_of(value: str) -> tuple[str, ...]:
    """The captions of a value: those of a JSON list of strings, else the value itself; none where it is empty.

    A caption may begin with a bracket ("[laughs] ..."), but not with one before a quote. Raises DataError for a list that cannot be read.
    """
    text = value.strip()
    if not text.startswith("["):
        return (text,) if text else ()
    try:
        found = json.loads(text)
    except ValueError as error:
        if re.match(r"\[\s*[\"']", text) is None:
            return (text,)
        raise DataError(f'captions that begin like a JSON list and are none: {error}; write ["one", "another"], or one caption') from None
    if not all(isinstance(caption, str) for caption in found):
        raise DataError('captions that are a list of other things than texts; write ["one", "another"]')
    return tuple(stripped for caption in found if (stripped := caption.strip()))
