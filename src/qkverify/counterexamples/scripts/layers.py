"""What the textbook forms of encoder and decoder layers share, as lines of a script."""

from __future__ import annotations

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


def of_layer(call: Recorded, run: Run) -> list[str]:
    """The constants and functions of a layer."""
    meant = run.meant(**call.options)
    lines = [f"HEADS, EPS = {call.options['heads']}, {meant['eps']!r}", ""]
    return [*lines, *(ATTEND + (BEFORE if meant["norm_first"] else AFTER)).splitlines(), "", DEFINITION]


def seen(call: Recorded, option: str, length: int) -> str:
    """Which tokens are no padding."""
    given = call.options.get(option)
    return "True" if given is None else f"np.arange({length}) < numbers({option})[:, None, None, None]"
