"""The textbook form of packed attention, as lines of a script."""

from __future__ import annotations

from qkverify.counterexamples.scripts.decoding import one_sequence
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.runs.run import Run


def steps(call: Recorded, run: Run) -> list[str]:
    """Each sequence by itself: rows (T,H,D), (S,G,D), (S,G,E)."""
    places = {"query": "a:b", "key": "c:d", "value": "c:d"}
    pieces = ", ".join(f"numbers({n})[{place}].swapaxes(0, 1)" for n, place in places.items())
    query, _, value = call.arguments[:3]
    made = f"np.zeros({(*query.shape[:2], value.shape[2])}{', complex' if call.upstream else ''})"
    return [*one_sequence(call, run, causal=bool(call.options.get("causal"))), f"exact = {made}",
            "q_at, k_at = numbers(query_starts).astype(int), numbers(key_starts).astype(int)",
            "for a, b, c, d in zip(q_at, q_at[1:], k_at, k_at[1:]):",
            f"    exact[a:b] = alone({pieces}).swapaxes(0, 1)"]  # fmt: skip
