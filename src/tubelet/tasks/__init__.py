"""What an encoder is for: embeddings, nearest neighbours, probes."""

from tubelet.tasks.metrics import Comparison, Score

__all__ = ["Comparison", "Score"]
