"""Sizes of models that people run, which several operations are timed at."""

from __future__ import annotations

LAYER = {"B": 1, "H": 8, "D": 64, "F": 2048, "norm_first": False, "eps": 1e-5, "padded": False}
# H query heads share a key/value head.
GROUPED = {"G": 8, "H": 4, "D": 128, "E": 128, "scale": None}
