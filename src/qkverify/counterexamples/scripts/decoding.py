"""What the textbook forms of attention over packed sequences, a growing cache and pages share, as lines of a script."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run

CACHES = ("key_cache", "value_cache")


def one_sequence(call: Recorded, run: Run, *, causal: bool) -> list[str]:
    """A function of one sequence alone: q (H,Q,D), k (G,K,D), v (G,K,E) -> (H,Q,E)."""
    scale, softcap = call.options.get("scale"), call.options.get("softcap")
    size = call.arguments[0].shape[-1]
    scale = float(max(size, 1) ** -0.5 if scale is None else scale)
    lines = ["def alone(q, k, v):  # one sequence: (heads, length, size)",
             "    group = len(q) // len(k)",
             "    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)  # heads that share keys",
             f"    scores = q @ k.swapaxes(-1, -2) * {scale!r}"]  # fmt: skip
    if softcap is not None:
        lines.append(f"    scores = {softcap!r} * np.tanh(scores / {softcap!r})")
    lines += _places(call, run, causal=causal)
    top = "scores.max(axis=-1, keepdims=True, initial=-1e300)"
    if "sinks" in call.options:
        lines += ["    sink = numbers(sinks)[:, None, None]  # one more logit, which takes weight and gives nothing",
                  f"    top = np.maximum({top}, sink)", "    p = np.exp(scores - top)",
                  "    total = p.sum(axis=-1, keepdims=True) + np.exp(sink - top)"]  # fmt: skip
    else:
        lines += [
            f"    top = {top}",
            "    p = np.exp(scores - top)",
            "    total = p.sum(axis=-1, keepdims=True)",
        ]
    lines.append("    return p / np.where(total == 0, 1, total) @ v  # nothing seen: zero")
    return [*lines, "", "", DEFINITION]


def _places(call: Recorded, run: Run, *, causal: bool) -> list[str]:
    """What depends on where a query and a key stand: ALiBi, the future, the window."""
    left, right = call.options.get("window") or (None, None)
    unseen = [f"ahead {sign} {limit}" for sign, limit in ((">", 0 if causal else None), ("<", None if left is None else -left),
                                                          (">", right)) if limit is not None]  # fmt: skip
    if not unseen and "alibi_slopes" not in call.options:
        return []
    aligned = causal_always(run) or run.semantics["causal_alignment"] == "bottom-right"
    after = " - (k.shape[1] - q.shape[1])" if aligned else ""
    lines = [
        f"    ahead = np.arange(k.shape[1]) - np.arange(q.shape[1])[:, None]{after}  # of a query's own place"
    ]
    if "alibi_slopes" in call.options:
        lines.append("    scores = scores - numbers(alibi_slopes)[:, None, None] * abs(ahead)")
    hidden = " | ".join(f"({condition})" for condition in unseen)
    return [*lines, f"    scores = np.where({hidden}, -np.inf, scores)"] if unseen else lines


def causal_always(run: Run) -> bool:
    """Whether the operation is causal by itself: its queries are the last tokens."""
    return run.implementation.operation in ("cached_attention", "paged_attention")


def left_wrong(call: Recorded) -> Iterator[str]:
    """The caches that a call has not left with exactly the new tokens behind those that they held."""
    if call.kind == "cached_attention" and call.error is None:
        _, key, value, *caches, lengths = call.arguments
        for name, new, held, left in zip(CACHES, (key, value), caches, call.after, strict=False):
            wanted = np.array(held)
            for entry, n, rows in zip(wanted, lengths, new, strict=True):
                entry[:, n : n + rows.shape[1]] = rows
            if left.shape != wanted.shape or not np.array_equal(left, wanted, equal_nan=True):
                yield name


def left_steps(cache: str) -> list[str]:
    """What is to stand in a cache after the call."""
    new = cache.removesuffix("_cache")
    return [f"exact = numbers({cache}).copy()", "for b, n in enumerate(numbers(lengths).astype(int)):",
            f"    exact[b, :, n : n + {new}.shape[2]] = numbers({new})[b]  # the new tokens, and the rest as it was"]  # fmt: skip


def left_verdict(cache: str) -> list[str]:
    at = CACHES.index(cache) + 1
    return [f"got = numbers(found[{at}] if isinstance(found, tuple) else {cache})",
            "differ = (got != exact) & ((got == got) | (exact == exact))",
            'print("entry, head and row of what differs:", *sorted({tuple(map(int, at[:3])) for at in np.argwhere(differ)}))',
            f'assert not differ.any(), "the call leaves other numbers in {cache}"']  # fmt: skip
