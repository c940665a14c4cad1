"""Zero-shot classification: the classes' names, put into sentences, are the classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tubelet.errors import ConfigError, DataError
from tubelet.tasks._pair import unlabelled
from tubelet.tasks.embed import Embeddings, finite, unit
from tubelet.tasks.metrics import Score, classification

PROMPTS = ("{}", "a video of {}", "a clip that shows {}")
TEMPERATURE = 0.01  # CLIP's: the lowest that its learned one may reach (section 2.5); it changes probabilities, no prediction


def readable(name: str) -> str:
    """A class name as words: ``apply_eye_makeup`` and ``ApplyEyeMakeup`` become "apply eye makeup" and "Apply Eye Makeup"."""
    text = name.replace("_", " ")
    out = []
    for before, letter, after in zip(" " + text, text, text[1:] + " ", strict=False):
        if letter.isupper() and (before.islower() or (before.isupper() and after.islower())):
            out.append(" ")
        out.append(letter)
    return " ".join("".join(out).split())


def check_prompts(prompts: str | Sequence[str]) -> tuple[str, ...]:
    """The templates, once it is sure that each has a place for the name. Raises ConfigError naming all that have none."""
    listed = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if not listed:
        raise ConfigError("prompts: at least one template must be given, such as 'a video of {}'")
    wrong = [f"--prompt {text!r}: has no {{}} where the class's name goes, as in 'a video of {{}}'" for text in listed if "{}" not in text]
    if wrong:
        raise ConfigError(wrong)
    return listed


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """The classes' names as words. Raises DataError where there are fewer than two, all are bare numbers, or two read the same."""
    if len(classes) < 2:
        raise DataError(f"classification needs at least two classes, there is {', '.join(map(repr, classes)) or 'none'}")
    if all(name.isdecimal() for name in classes):
        few = ", ".join(classes[:3])
        raise DataError(f"the classes are numbers ({few}, ...), which say nothing in a sentence; give labels that are names")
    first: dict[str, str] = {}
    for name in classes:
        other = first.setdefault(readable(name).casefold(), name)  # many tokenizers read no case
        if other != name:
            raise DataError(f"classes {other!r} and {name!r} both read {readable(name)!r}: prompts cannot tell them apart; rename one")
    return tuple(readable(name) for name in classes)


def class_vectors(encode: Callable[[Sequence[str]], np.ndarray], classes: Sequence[str], prompts: str | Sequence[str]) -> np.ndarray:
    """(C, D) float64 of length 1: for each class the mean of its prompts' vectors, renormalised (CLIP section 3.1.4: an ensemble in the
    space of embeddings, so that it costs nothing at test time).

    ``encode``: n texts -> (n, D) of length 1. Raises ConfigError, DataError, CheckpointError for a vector that is not finite.
    """
    templates, words = check_prompts(prompts), check_classes(classes)
    vectors = encode([template.replace("{}", word) for word in words for template in templates])
    means = vectors.reshape(len(words), len(templates), -1).mean(1)
    for name, mean in zip(classes, means, strict=True):
        finite(mean, f"the class {name!r}")
    return unit(means)


def score_zeroshot(videos: Embeddings, classes_CD: np.ndarray, prompts: str | Sequence[str], **details: Any) -> Score:
    """Give every video the class whose vector is the nearest by cosine; nothing is fitted.

    ``classes_CD``: of :func:`class_vectors`, in the order of ``videos.classes``. Probabilities are the softmax of cosine / 0.01.
    Raises DataError for videos without labels, CheckpointError for a vector that is not finite.
    """
    if problems := unlabelled("test", videos):
        raise DataError(problems[0])
    for vector, key in zip(videos.vectors, videos.keys, strict=True):
        finite(vector, key)
    templates = check_prompts(prompts)
    logits = unit(videos.vectors) @ classes_CD.T / TEMPERATURE
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    return classification(
        "zero-shot",
        probabilities,
        videos.labels,
        videos.keys,
        videos.classes,
        n_total=videos.n_total,
        failures=videos.failures,
        details={"pool": f"{len(templates)} prompt{'s' * (len(templates) > 1)}", "prompts": list(templates), **details},
    )
