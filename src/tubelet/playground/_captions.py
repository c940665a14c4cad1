"""One sentence a clip, of true facts only: the main object and its motion first, then the others that can be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tubelet.playground._motions import BY_NAME


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object in words. ``motion`` is the name of a class in MOTIONS."""

    size: str
    texture: str
    colour: str
    shape: str
    motion: str

    @property
    def noun(self) -> str:
        """Such as ``a small striped red circle``."""
        words = [self.size, self.texture if self.texture != "plain" else "", self.colour, self.shape]
        text = " ".join(word for word in words if word)
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


GROUND_NOUNS = {"smooth": "a smooth", "clouds": "a cloudy", "stripes": "a striped", "checks": "a chequered", "dots": "a dotted"}
_PAIRS = ("{0} while {1}", "{0}, and {1}", "{0} as {1}")
_TRIPLES = ("{0} while {1} and {2}", "{0}, {1}, and {2}")


def ground_noun(tone: str, pattern: str, drifts: bool) -> str:
    """Such as ``a drifting striped navy ground``."""
    article, look = GROUND_NOUNS[pattern].split()
    return f"{article} {'drifting ' if drifts else ''}{look} {tone} ground"


def caption(things: Sequence[Thing], ground: str | None, choose: Callable[[str, int], int]) -> str:
    """``choose(name, n)`` picks a wording in [0, n)."""
    clauses = []
    for i, thing in enumerate(things):
        phrases = BY_NAME[thing.motion].phrases
        clauses.append(f"{thing.noun} {phrases[choose(f'phrase{i}', len(phrases))]}")
    forms = {1: ("{0}",), 2: _PAIRS, 3: _TRIPLES}[len(clauses)]
    text = forms[choose("form", len(forms))].format(*clauses)
    if ground is not None:
        text = f"{text} on {ground}" if choose("ground", 2) else f"on {ground}, {text}"
    return text
