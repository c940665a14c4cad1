"""Tubelet: self-supervised learning from video."""

__version__ = "0.1.0"
