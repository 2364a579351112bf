"""Texts for models to read: the sentence of the pictures, and a page that is long enough for 512 tokens.

`alice.txt` is the beginning of Lewis Carroll, Alice's Adventures in Wonderland (1865), chapter I: in the public domain.
"""

from __future__ import annotations

from pathlib import Path

# "The Illustrated Transformer", section "Self-Attention at a High Level"
ANIMAL = "The animal didn't cross the street because it was too tired"


def alice() -> str:
    """The first paragraphs of the book, one line a paragraph."""
    return (Path(__file__).parent / "alice.txt").read_text(encoding="utf-8")
