"""The textbook form of other operations than attention, as lines of a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qkverify.counterexamples.scripts.decoding import cached_steps, packed_steps, paged_steps
from qkverify.counterexamples.scripts.layers import (
    cross_entropy_steps,
    decoder_steps,
    embedding_steps,
    encoder_steps,
    feed_forward_steps,
)
from qkverify.counterexamples.scripts.recorder import Recorded
from qkverify.counterexamples.scripts.textbook import DEFINITION
from qkverify.runs.run import Run


def _softmax_steps(call: Recorded, run: Run) -> list[str]:
    return [DEFINITION, "s = numbers(scores)",
            "weights = np.exp(s - s.max(axis=-1, keepdims=True))",
            "exact = weights / weights.sum(axis=-1, keepdims=True)"]  # fmt: skip


def _interleaved(call: Recorded, run: Run) -> bool:
    """Whether neighbours make a pair: as the call was told, else as the function has it."""
    return bool(run.meant(layout=call.options.get("layout"))["layout"] == "interleaved")


def _joined(call: Recorded, run: Run, first: str, second: str, shape: str) -> str:
    """Pairs as neighbours, or as two halves."""
    if _interleaved(call, run):
        return f"exact = np.stack([{first}, {second}], axis=-1).reshape({shape})  # neighbours make a pair"
    return f"exact = np.concatenate([{first}, {second}], axis=-1)  # one from each half makes a pair"


def _encoding_steps(call: Recorded, run: Run) -> list[str]:
    return [DEFINITION,
            "angle = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, dim, 2) / dim)",
            _joined(call, run, "np.sin(angle)", "np.cos(angle)", "length, dim")]  # fmt: skip


def _rotary_steps(call: Recorded, run: Run) -> list[str]:
    size = call.arguments[0].shape[-1]
    halves = f"y[..., :{size // 2}], y[..., {size // 2}:]"
    pair = "y[..., 0::2], y[..., 1::2]" if _interleaved(call, run) else halves
    return [DEFINITION, "y = numbers(x)",
            f"angle = numbers(positions)[:, None] / 10000.0 ** (np.arange(0, {size}, 2) / {size})", f"a, b = {pair}",
            "first, second = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)",
            _joined(call, run, "first", "second", "y.shape")]  # fmt: skip


def _rotary_pair_steps(call: Recorded, run: Run) -> list[str]:
    which = int(list(call.got).index(call.judged))
    size, name = call.arguments[0].shape[-1], ("query", "key")[which]
    halves = f"y[..., :{size // 2}], y[..., {size // 2}:]"
    pair = "y[..., 0::2], y[..., 1::2]" if _interleaved(call, run) else halves
    return [DEFINITION, f"y = numbers({name})",
            f"angle = numbers(positions)[:, None, :, None] / 10000.0 ** (np.arange(0, {size}, 2) / {size})", f"a, b = {pair}",
            "first, second = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)",
            _joined(call, run, "first", "second", "y.shape")]  # fmt: skip


def _slopes_steps(call: Recorded, run: Run) -> list[str]:
    heads = int(call.arguments[0])
    power = 2 ** max(heads.bit_length() - 1, 0)
    return [DEFINITION,
            f"slopes = 2.0 ** (-8.0 / {power} * np.arange(1, {power + 1}))",
            f"between = 2.0 ** (-4.0 / {power} * np.arange(1, {2 * power + 1}, 2))",
            f"exact = np.concatenate([slopes, between])[:{heads}]"]  # fmt: skip


def _multi_head_steps(call: Recorded, run: Run) -> list[str]:
    heads = call.options["heads"]
    length = call.arguments[0].shape[1]
    lines = [DEFINITION, "y = numbers(x)",
             f"q, k, v = ((y @ numbers(w)).reshape(*y.shape[:2], {heads}, -1).swapaxes(1, 2) for w in (w_q, w_k, w_v))",
             "scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5"]  # fmt: skip
    if call.options.get("causal"):
        lines.append(f"scores = np.where(np.tri({length}) > 0, scores, -np.inf)")
    return [*lines, "weights = np.exp(scores - scores.max(axis=-1, keepdims=True))",
            "weights = weights / weights.sum(axis=-1, keepdims=True)",
            "exact = (weights @ v).swapaxes(1, 2).reshape(*y.shape[:2], -1) @ numbers(w_o)"]  # fmt: skip


OPERATION_STEPS: Mapping[str, Callable[[Recorded, Run], list[str]]] = {
    "softmax": _softmax_steps, "positional_encoding": _encoding_steps, "rotary": _rotary_steps,
    "alibi_slopes": _slopes_steps, "multi_head_attention": _multi_head_steps,
    "rotary_pair": _rotary_pair_steps, "embedding": embedding_steps, "feed_forward": feed_forward_steps,
    "encoder_layer": encoder_steps, "decoder_layer": decoder_steps, "cross_entropy": cross_entropy_steps,
    "packed_attention": packed_steps, "cached_attention": cached_steps, "paged_attention": paged_steps,
}  # fmt: skip
