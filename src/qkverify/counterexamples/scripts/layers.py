"""The textbook form of embeddings, layers and losses, as lines of a script."""

from __future__ import annotations

from typing import Any

from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run

ATTEND = """
def attend(y, source, prefix, seen):  # seen: broadcasts to (batch, heads, length of y, length of source)
    w = {name: numbers(weights[prefix + name]) for name in ("w_q", "w_k", "w_v", "w_o")}
    pairs = (y, "w_q"), (source, "w_k"), (source, "w_v")
    q, k, v = ((z @ w[name]).reshape(*z.shape[:2], HEADS, -1).swapaxes(1, 2) for z, name in pairs)
    scores = np.where(seen, q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (p / p.sum(axis=-1, keepdims=True) @ v).swapaxes(1, 2).reshape(y.shape) @ w["w_o"]


def norm(y, i):
    centred = y - y.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS)
    return scaled * numbers(weights[f"gain_{i}"]) + numbers(weights[f"shift_{i}"])


def feed(y):
    hidden = np.maximum(y @ numbers(weights["w_1"]) + numbers(weights["b_1"]), 0)
    return hidden @ numbers(weights["w_2"]) + numbers(weights["b_2"])
"""
AFTER = """

def added(y, i, sublayer):
    return norm(y + sublayer(y), i)

"""
BEFORE = """

def added(y, i, sublayer):  # the norm comes first
    return y + sublayer(norm(y, i))

"""


def _layer(call: Recorded, run: Run) -> list[str]:
    """The constants and functions of a layer."""
    meant = run.meant(**call.options)
    lines = [f"HEADS, EPS = {call.options['heads']}, {meant['eps']!r}", ""]
    return [*lines, *(ATTEND + (BEFORE if meant["norm_first"] else AFTER)).splitlines(), "", DEFINITION]


def _seen(call: Recorded, option: str, length: int) -> str:
    """Which tokens are no padding."""
    given = call.options.get(option)
    return "True" if given is None else f"np.arange({length}) < numbers({option})[:, None, None, None]"


def encoder_steps(call: Recorded, run: Run) -> list[str]:
    """Self-attention, feed-forward."""
    visible = _seen(call, "key_lengths", call.arguments[0].shape[1])
    return [*_layer(call, run), f'y = added(numbers(x), 1, lambda y: attend(y, y, "", {visible}))',
            "exact = added(y, 2, feed)"]  # fmt: skip


def decoder_steps(call: Recorded, run: Run) -> list[str]:
    """Causal self-attention, attention to the memory, feed-forward."""
    length, visible = call.arguments[0].shape[1], _seen(call, "memory_lengths", call.arguments[1].shape[1])
    return [*_layer(call, run), "source = numbers(memory)",
            f'y = added(numbers(x), 1, lambda y: attend(y, y, "", np.tri({length}, dtype=bool)))',
            f'y = added(y, 2, lambda y: attend(y, source, "cross_", {visible}))', "exact = added(y, 3, feed)"]  # fmt: skip


def feed_forward_steps(call: Recorded, run: Run) -> list[str]:
    """Two linear maps, a relu between them."""
    return [DEFINITION, "hidden = np.maximum(numbers(x) @ numbers(w_1) + numbers(b_1), 0)",
            "exact = hidden @ numbers(w_2) + numbers(b_2)"]  # fmt: skip


def cross_entropy_steps(call: Recorded, run: Run) -> list[str]:
    """The loss of each token."""
    smoothing: Any = call.options.get("smoothing", 0.0)
    classes, labels = call.arguments[0].shape[-1], "numbers(targets).astype(int)"
    return [DEFINITION, "s = numbers(scores)", "s = s - s.max(axis=-1, keepdims=True)",
             "logarithms = s - np.log(np.exp(s).sum(axis=-1, keepdims=True))",
             f"wanted = {1 - smoothing!r} * np.eye({classes})[{labels}] + {smoothing!r} / {classes}",
            "exact = -(wanted * logarithms).sum(axis=-1)"]  # fmt: skip


def embedding_steps(call: Recorded, run: Run) -> list[str]:
    """Scaled words plus the encoding of their positions."""
    size, length = call.arguments[1].shape[1], call.arguments[0].shape[1]
    first = "numbers(padding)[:, None]" if "padding" in call.options else "np.zeros((1, 1))"
    joined = "np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(*angle.shape[:-1], -1)"
    if run.meant(layout=call.options.get("layout"))["layout"] != "interleaved":
        joined = "np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)"
    return [DEFINITION, f"at = np.maximum(np.arange({length}) - {first}, 0)  # the position of each token",
            f"angle = at[..., None] / 10000.0 ** (np.arange(0, {size}, 2) / {size})",
            f"exact = numbers(table)[numbers(tokens).astype(int)] * {size} ** 0.5 + {joined}"]  # fmt: skip
