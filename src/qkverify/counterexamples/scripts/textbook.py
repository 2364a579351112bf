"""Textbook attention in float64, as lines of a script: with the options of one problem and no others."""

from __future__ import annotations

import numpy as np

from qkverify.counterexamples.scripts.calls import plain
from qkverify.problem.attention_problem import Problem

DEFINITION = "# What it is by definition, in float64."


def attention_steps(problem: Problem, what: str, *, dropped: bool = False) -> list[str]:
    """Textbook attention, or one of its gradients, with the options of this problem and no other.

    `dropped`: the weights of a gradient are multiplied by `kept`.
    """
    s, p = problem.sizes, problem
    if not s["K"]:
        return [f"exact = np.zeros({(s['B'], s['H'], s['Q'], s['E'])})  # no key, nothing to average"]
    scale = p.scale if p.scale is not None else max(s["D"], 1) ** -0.5
    lines = [DEFINITION, "q, k, v = numbers(query), numbers(key), numbers(value)"]
    if p.group > 1:
        lines.append(
            f"k, v = np.repeat(k, {p.group}, axis=1), np.repeat(v, {p.group}, axis=1)  # heads that share keys"
        )
    lines.append(f"scores = q @ k.swapaxes(-1, -2) * {plain(scale)!r}")
    capped = p.softcap is not None and bool(np.isfinite(p.softcap))
    if capped:
        lines += [f"capped = np.tanh(scores / {p.softcap!r})", f"scores = {p.softcap!r} * capped"]
    lines += ["scores = scores + numbers(bias)"] if p.bias is not None else []
    lines += _hidden(p)
    if p.sinks is not None:
        lines += [f"sink = np.broadcast_to(numbers(sinks)[:, None, None], {(s['B'], s['H'], s['Q'], 1)})",
                  "scores = np.concatenate([scores, sink], axis=-1)"]  # fmt: skip
    lines += _softmax(p, what)
    return lines + (_backward(p, what, scale, capped, dropped) if what.startswith("gradient") else [])


def _hidden(p: Problem) -> list[str]:
    """ALiBi, and what hides keys."""
    s, lines = p.sizes, []
    start = s["K"] - s["Q"] if p.causal_alignment == "bottom-right" else 0
    left, right = p.window or (None, None)
    if p.causal or p.window is not None or p.alibi_slopes is not None:
        after = f" - {start}" if start > 0 else f" + {-start}" if start else ""
        lines.append(
            f"ahead = np.arange({s['K']}) - np.arange({s['Q']})[:, None]{after}  # how far after the query a key is"
        )
    if p.alibi_slopes is not None:
        lines.append("scores = scores - numbers(alibi_slopes)[:, None, None] * abs(ahead)")
    shown = {"ahead <= 0": p.causal, f"ahead >= -{left}": left is not None, f"ahead <= {right}": right is not None,
             f"np.arange({s['K']}) < numbers(key_lengths)[:, None, None, None]": p.key_lengths is not None,
             "numbers(mask) > 0": p.mask is not None}  # fmt: skip
    return lines + [
        f"scores = np.where({condition}, scores, -np.inf)" for condition, used in shown.items() if used
    ]


def _softmax(p: Problem, what: str) -> list[str]:
    """Weights, and the output or the log-sum-exp."""
    empty = p.sinks is None and not p.some_visible.all()
    lines = ["top = scores.max(axis=-1, keepdims=True)"]
    lines += ["top = np.where(top == -np.inf, 0, top)  # of a query that sees no key"] if empty else []
    lines += ["weights = np.exp(scores - top)", "total = weights.sum(axis=-1, keepdims=True)"]
    if what == "log-sum-exp":
        return [*lines, "exact = (np.log(total) + top)[..., 0]"]
    lines.append(f"weights = weights / {'np.where(total == 0, 1, total)' if empty else 'total'}")
    lines += ["weights = weights[..., :-1]  # a sink has no value"] if p.sinks is not None else []
    used = p.empty_row == "uniform" and what in ("output", "gradient of value")
    used = used or p.empty_row == "uniform with gradients"
    used = used or (p.empty_row == "nan" and what == "output")
    if empty and used:
        given = "np.nan" if p.empty_row == "nan" else f"1 / {p.sizes['K']}"
        lines.append(
            f"weights = np.where(total == 0, {given}, weights)  # of a query that sees no key, as declared"
        )
    return [*lines, "exact = weights @ v"] if what == "output" else lines


def _backward(p: Problem, what: str, scale: float, capped: bool, dropped: bool) -> list[str]:
    """The gradient of sum(upstream * output) in what is asked for."""
    s, which = p.sizes, what.removeprefix("gradient of ")
    shared = f".reshape({s['B']}, {s['G']}, {p.group}, {s['K']}, -1).sum(axis=2)" if p.group > 1 else ""
    lines = ["g = numbers(upstream)"]
    if which == "value":
        weights = "(weights * kept)" if dropped else "weights"
        return [*lines, f"exact = ({weights}.swapaxes(-1, -2) @ g){shared}"]
    lines += [f"d_weights = g @ v.swapaxes(-1, -2){' * kept' if dropped else ''}",
              "d_scores = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))"]  # fmt: skip
    if which == "bias":
        assert p.bias is not None
        aligned = (1,) * (4 - p.bias.ndim) + p.bias.shape
        axes = tuple(i for i, n in enumerate(aligned) if n == 1)
        return [*lines, f"exact = d_scores.sum(axis={axes}, keepdims=True).reshape({p.bias.shape})"]
    lines += ["d_scores = d_scores * (1 - capped**2)"] if capped else []
    lines.append(f"d_scores = d_scores * {plain(scale)!r}")
    if which == "query":
        return [*lines, "exact = d_scores @ k"]
    return [*lines, f"exact = (d_scores.swapaxes(-1, -2) @ q){shared}"]
