"""Retrieval: is a video's caption its nearest text, and the video its caption's nearest video?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tubelet.tasks.embed import finite, unit
from tubelet.tasks.metrics import json_text, wilson

TOP = (1, 5, 10)
TIE = 1e-6  # cosines of float32 vectors that are nearer than this say nothing of the order
BLOCK = 1024  # queries that are compared at once


class RecallAt(NamedTuple):
    """R@k: ``value`` is the share of queries with a right answer among the first ``k``; ``low``, ``high``: its 95 % Wilson interval;
    ``chance``: what a random order would reach, k / n where each query has one right answer among n candidates. All in [0, 1]."""

    k: int
    value: float
    low: float
    high: float
    chance: float

    def __str__(self) -> str:
        percent = [f"{100 * x:.1f}" for x in self[1:]]
        return f"R@{self.k} {percent[0]} % [{percent[1]}, {percent[2]}] (chance {percent[3]} %)"


@dataclass(frozen=True)
class Direction:
    """One direction of a retrieval.

    ``asked``, ``found``: what queries and candidates are ("captions", "videos"). ``queries``: captions, or keys of videos. ``ranks`` (n,)
    int64, from 1: of the best right candidate; candidates that tie with it count as before it. ``right`` (n,) int64: how many candidates
    are right. ``first``: the best candidate of each query. ``candidates``: their number.
    """

    asked: str
    found: str
    queries: tuple[str, ...]
    ranks: np.ndarray
    right: np.ndarray
    first: tuple[str, ...]
    candidates: int

    def at(self, k: int) -> RecallAt:
        """R@k over all queries; with ``k`` candidates or fewer it is 1, and so is chance."""
        hits, n = int((self.ranks <= k).sum()), len(self.ranks)
        return RecallAt(k, hits / n, *wilson(hits, n), self.chance(k))

    def chance(self, k: int) -> float:
        """Expected R@k of a random order: the mean over queries of the probability that one of its right answers is among k of n drawn
        without replacement."""
        missed = np.ones(len(self.right))
        for drawn in range(min(k, self.candidates)):
            missed *= np.maximum(self.candidates - self.right - drawn, 0) / (self.candidates - drawn)
        return float(1 - missed.mean())

    @property
    def median(self) -> float:
        """Median rank, from 1."""
        return float(np.median(self.ranks))

    def __str__(self) -> str:
        recalls = ", ".join(str(self.at(k)) for k in TOP)
        return f"{self.asked} -> {self.found}: {recalls}, median rank {self.median:g} of {self.candidates}, {len(self.ranks)} {self.asked}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        asked = zip(self.queries, self.ranks.tolist(), self.right.tolist(), self.first, strict=True)
        return {
            "queries": len(self.queries),
            "candidates": self.candidates,
            "recall": [self.at(k)._asdict() for k in TOP],
            "median_rank": self.median,
            "ranks": [{"query": query, "rank": rank, "right": right, "first": first} for query, rank, right, first in asked],
        }


@dataclass(frozen=True)
class Retrieval:
    """What a retrieval found, in both directions.

    ``n_scored`` of ``n_total`` captioned videos could be read; ``failures``: (key, reason) of the others, which are neither asked for nor
    found. ``uncaptioned``: items that were left out because nothing is said of them. ``details``: settings.
    """

    text_to_video: Direction
    video_to_text: Direction
    n_scored: int
    n_total: int
    failures: Sequence[tuple[str, str]] = ()
    uncaptioned: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        left_out = f", {self.uncaptioned} without caption left out" if self.uncaptioned else ""
        return f"{self.text_to_video}\n{self.video_to_text}\n{self.n_scored} / {self.n_total} videos scored{left_out}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": "retrieval",
            "text_to_video": self.text_to_video.as_dict(),
            "video_to_text": self.video_to_text.as_dict(),
            "n_scored": self.n_scored,
            "n_total": self.n_total,
            "failures": [list(f) for f in self.failures],
            "uncaptioned": self.uncaptioned,
            "details": dict(self.details),
        }

    def to_json(self) -> str:
        """The dictionary as JSON text. Bytes of file names that are no text are replaced."""
        return json_text(self.as_dict())

    def save_json(self, path: Path | str) -> None:
        """Write :meth:`to_json`, atomically."""
        from tubelet.train.checkpoint import write_text  # here: it imports torch

        write_text(Path(path), self.to_json())


def score_retrieval(
    videos_ND: np.ndarray,
    keys: Sequence[str],
    texts: Sequence[str],
    rows: Sequence[int],
    texts_TD: np.ndarray,
    *,
    n_total: int,
    failures: Sequence[tuple[str, str]] = (),
    uncaptioned: int = 0,
    details: Mapping[str, Any] | None = None,
) -> Retrieval:
    """Rank videos for texts and texts for videos by cosine: R@1, R@5, R@10 and the median rank.

    ``videos_ND``, ``keys``: N videos. ``texts`` (T), ``texts_TD``: captions and their vectors; text t is said of video ``rows[t]``. A
    video may have several captions, and several videos the same one: that text is asked once, as one query, and is one candidate.

    Text -> video: the rank of the best of the videos of which that very text is said (they are equally right) among all videos. Video ->
    text: the rank of the best of its own captions among all distinct captions. Candidates whose cosine ties with it (within 1e-6) count as
    before it, so that a model which gives all the same vector finds nothing. The measure of image and video retrieval (CLIP, Radford et
    al. 2021, appendix E; the R@1 of TGM, Fan et al. 2024, page section 6).
    Raises CheckpointError for a vector that is not finite.
    """
    assert len(videos_ND) == len(keys), f"{len(videos_ND)} vectors for {len(keys)} videos"
    assert len(texts) == len(rows) == len(texts_TD) > 0, f"{len(texts)} texts, {len(rows)} rows, {len(texts_TD)} vectors"
    for key, vector in zip(keys, videos_ND, strict=True):
        finite(vector, key)
    for text, vector in zip(texts, texts_TD, strict=True):
        finite(vector, f"the text {text!r}")
    place = {text: t for t, text in enumerate(texts)}
    distinct = tuple(dict.fromkeys(texts))
    number = {text: i for i, text in enumerate(distinct)}
    videos, captions = unit(videos_ND), unit(texts_TD[[place[text] for text in distinct]])
    pairs = sorted({(number[text], int(row)) for text, row in zip(texts, rows, strict=True)})
    videos_of = _grouped([text for text, _ in pairs], [row for _, row in pairs])
    texts_of = _grouped([row for _, row in pairs], [text for text, _ in pairs])
    asked = sorted(texts_of)
    return Retrieval(
        _direction("captions", "videos", distinct, captions, keys, videos, [videos_of[i] for i in range(len(distinct))]),
        _direction("videos", "captions", tuple(keys[i] for i in asked), videos[asked], distinct, captions, [texts_of[i] for i in asked]),
        len(keys),
        n_total,
        tuple(failures),
        uncaptioned,
        dict(details or {}),
    )


def _grouped(names: Sequence[int], members: Sequence[int]) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    for name, member in zip(names, members, strict=True):
        out.setdefault(name, []).append(member)
    return out


def _direction(
    asked: str,
    found: str,
    queries: tuple[str, ...],
    queries_QD: np.ndarray,
    candidates: Sequence[str],
    candidates_ND: np.ndarray,
    right: Sequence[Sequence[int]],
) -> Direction:
    ranks, best = ranked(queries_QD, candidates_ND, right)
    counts = np.array([len(mine) for mine in right], np.int64)
    return Direction(asked, found, queries, ranks, counts, tuple(candidates[int(i)] for i in best), len(candidates))


def ranked(queries_QD: np.ndarray, candidates_ND: np.ndarray, right: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(Q,) int64 ranks from 1, and (Q,) the best candidates. ``right``: for each query the candidates that are right, at least one.

    A rank is 1 + the wrong candidates that are as good as the best right one, or better. Vectors have length 1.
    """
    ranks, best = np.zeros(len(queries_QD), np.int64), np.zeros(len(queries_QD), np.int64)
    for start in range(0, len(queries_QD), BLOCK):
        scores = queries_QD[start : start + BLOCK] @ candidates_ND.T
        best[start : start + BLOCK] = scores.argmax(1)
        for i, row in enumerate(scores, start):
            mine = list(right[i])
            as_good = row >= row[mine].max() - TIE
            ranks[i] = 1 + as_good.sum() - as_good[mine].sum()
    return ranks, best
