"""The textbook form of attention over packed sequences, a growing cache and pages, as lines of a script."""

from __future__ import annotations

from qkverify.runs import Run
from qkverify.scripts.recorder import Recorded
from qkverify.scripts.textbook import DEFINITION


def _one_sequence(call: Recorded, run: Run, *, causal: bool) -> list[str]:
    """A function of one sequence alone: q (H,Q,D), k (G,K,D), v (G,K,E) -> (H,Q,E)."""
    scale, softcap = call.options.get("scale"), call.options.get("softcap")
    size = call.arguments[0].shape[-1]
    scale = max(size, 1) ** -0.5 if scale is None else scale
    lines = ["def alone(q, k, v):  # one sequence: (heads, length, size)", "    group = len(q) // len(k)",
             "    k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)  # heads that share keys",
             f"    scores = q @ k.swapaxes(-1, -2) * {float(scale)!r}"]  # fmt: skip
    lines += [f"    scores = {softcap!r} * np.tanh(scores / {softcap!r})"] if softcap is not None else []
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
    return [
        *lines,
        "    return p / np.where(total == 0, 1, total) @ v  # nothing seen: zero",
        "",
        "",
        DEFINITION,
    ]


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
    hidden = " | ".join(f"({one})" for one in unseen)
    return [*lines, f"    scores = np.where({hidden}, -np.inf, scores)"] if unseen else lines


def causal_always(run: Run) -> bool:
    """Whether the operation is causal by itself: its queries are the last tokens."""
    return run.implementation.operation in ("cached_attention", "paged_attention")


def packed_steps(call: Recorded, run: Run) -> list[str]:
    """Each sequence by itself: rows (T,H,D), (S,G,D), (S,G,E)."""
    rows = ("query", "key", "value")
    pieces = ", ".join(f"numbers({n})[{'a:b' if n == 'query' else 'c:d'}].swapaxes(0, 1)" for n in rows)
    return [*_one_sequence(call, run, causal=bool(call.options.get("causal"))), f"exact = np.zeros({call.shape})",
            "q_at, k_at = numbers(query_starts).astype(int), numbers(key_starts).astype(int)",
            "for a, b, c, d in zip(q_at, q_at[1:], k_at, k_at[1:]):",
            f"    exact[a:b] = alone({pieces}).swapaxes(0, 1)"]  # fmt: skip


def cached_steps(call: Recorded, run: Run) -> list[str]:
    """The new tokens of each entry after those that its cache holds."""
    held = [f"np.concatenate([numbers({n}_cache)[b, :, :n], numbers({n})[b]], axis=1)" for n in ("key", "value")]  # fmt: skip
    return [*_one_sequence(call, run, causal=True), "exact = np.stack([", "    alone(numbers(query)[b],",
            f"          {held[0]},", f"          {held[1]})",
            "    for b, n in enumerate(numbers(lengths).astype(int))", "])"]  # fmt: skip


def paged_steps(call: Recorded, run: Run) -> list[str]:
    """The pages of each entry, in the order of its table; the queries are its last tokens."""
    held = [f"numbers({n}_pages)[numbers(page_table)[b].astype(int)].reshape(-1, *{n}_pages.shape[2:])[:n].swapaxes(0, 1)"
            for n in ("key", "value")]  # fmt: skip
    return [*_one_sequence(call, run, causal=True), "exact = np.stack([", "    alone(numbers(query)[b],",
            f"          {held[0]},", f"          {held[1]})",
            "    for b, n in enumerate(numbers(lengths).astype(int))", "])"]  # fmt: skip
