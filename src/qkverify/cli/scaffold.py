"""`qkverify new`: the file of a new implementation, complete and correct, to be replaced line by line."""

from __future__ import annotations

from pathlib import Path

from qkverify.contract import FRAMEWORKS
from qkverify.errors import UsageError

MODULES = {"numpy": ("import numpy as xp", "xp.swapaxes"), "torch": ("import torch as xp", "xp.swapaxes"),
           "jax": ("import jax.numpy as xp", "xp.swapaxes")}  # fmt: skip
HALF = {"numpy": "keepdims=True", "torch": "keepdim=True", "jax": "keepdims=True"}
LARGEST = {
    "numpy": "scores.max(axis=-1, keepdims=True)",
    "torch": "scores.amax(dim=-1, keepdim=True)",
    "jax": "scores.max(axis=-1, keepdims=True)",
}
DTYPES = {"numpy": '"float32", "float64"', "torch": '"float32", "float64"', "jax": '"float32"'}

TEMPLATE = '''"""{name}: say here what this implementation does differently."""

{module}

from qkverify import implementation


@implementation(name="{name}", arrays="{arrays}", dtypes=({dtypes},), requires=("G == H", "K >= 1"))
def attention(query, key, value, *, scale=None):
    """query (B,H,Q,D), key (B,H,K,D), value (B,H,K,E) -> (B,H,Q,E). Each further option is one more parameter."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ {swap}(key, -1, -2) * scale
    weights = xp.exp(scores - {largest})
    return weights @ value / weights.sum(-1, {keep})
'''


def write_new(name: str, arrays: str, folder: Path) -> Path:
    """Write `<name>.py` into a folder. Raises UsageError for a name that is none, or a file that exists."""
    if arrays not in FRAMEWORKS:
        raise UsageError.unknown("framework", arrays, FRAMEWORKS)
    if not name.isidentifier():
        raise UsageError(f"{name!r} is not a name for a Python module; use letters, digits and underscores")
    path = folder / f"{name}.py"
    if path.exists():
        raise UsageError(f"{path} already exists; nothing was written")
    module, swap = MODULES[arrays]
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    path.write_text(TEMPLATE.format(name=name, arrays=arrays, module=module, swap=swap, largest=LARGEST[arrays],
                                    keep=HALF[arrays], dtypes=DTYPES[arrays]))  # fmt: skip
    return path
