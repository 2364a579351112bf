"""Queries, keys and values of a trained model on real text: what attention is given outside of tests.

`activations.npz` holds those of the first layer of all-MiniLM-L6-v2 (12 heads of 32) on the first 128 tokens of
`texts/alice.txt`, in float16, 273 KB: so they are at hand without the model's 83 MB. They are the first layer's because it is
the furthest from normal numbers: scores from -39 to 42, heads that read one key beside heads that average all. Longer texts
are put through the model when they are asked for (extra `models`).

`python -m qkverify.problem.activations` writes the file anew; a test holds that the model still says the same.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qkverify.errors import UsageError
from qkverify.problem import pretrained, texts

FILE = Path(__file__).with_suffix(".npz")
SOURCE = f"{pretrained.NAME}, first layer, on Alice's Adventures in Wonderland"
NAMES = ("query", "key", "value")
STORED_TOKENS = 128
HEADS, SIZE = 12, 32


@functools.lru_cache(maxsize=1)
def stored() -> Mapping[str, np.ndarray]:
    """query, key, value (H,L,D) = (12,128,32), float16."""
    with np.load(FILE) as arrays:
        return {name: arrays[name] for name in NAMES}


def captured(tokens: int) -> dict[str, np.ndarray]:
    """The same in float64, out of the model, of the first `tokens` tokens. Raises UsageError without the extra `models`."""
    model = pretrained.load()
    numbers, _ = pretrained.tokenise(texts.alice(), longest=tokens)
    if len(numbers) < tokens:
        raise UsageError(
            f"{tokens} tokens of activations were asked for; the text and the model give {len(numbers)}"
        )
    projected = pretrained.projected(pretrained.embedded(model, numbers), model.layer(0), model.heads)
    return {name: array[0] for name, array in zip(NAMES, projected, strict=True)}


@functools.lru_cache(maxsize=2)
def first(tokens: int) -> Mapping[str, np.ndarray]:
    """query, key, value (H,L,D) of the first `tokens` tokens, float16; from the file where it is long enough."""
    if tokens <= STORED_TOKENS:
        return {name: array[:, :tokens] for name, array in stored().items()}
    return {name: array.astype(np.float16) for name, array in captured(tokens).items()}


def write(path: Path = FILE) -> None:
    """Make the file."""
    arrays = {name: array.astype(np.float16) for name, array in captured(STORED_TOKENS).items()}
    np.savez_compressed(path, query=arrays["query"], key=arrays["key"], value=arrays["value"])


if __name__ == "__main__":
    write()
