"""What an attention call means, as data, and what an implementation says about itself.

Dimension letters, used everywhere: B batch, H query heads, G key/value heads (H = G * group), Q query length, K key
length, D key size, E value size. Three literal tables carry the rules; the rest of this file reads them:

`OPTIONS`      the keyword arguments of an attention call and what each means;
`SEMANTICS`    where libraries differ legitimately, and the values each choice can take;
`CONVENTIONS`  how the libraries of the field name and lay out the same arguments.

The signature of a function is the list of what it offers: a parameter that is not there is not offered. What it does not
offer it refuses (`UnsupportedCase`), and sizes that do not fit one another raise an error, whichever: nothing is read past an
end, nothing broadcast by chance. What else is asked of each operation stands in `operations.DESCRIBED`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from qkverify.contract.operations import DESCRIBED

OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "mask": "bool, broadcastable to (B,H,Q,K); True = may attend",
        "bias": "float, broadcastable to (B,H,Q,K); added to the scores",
        "causal": "bool; query i sees keys up to i (+ K - Q when aligned bottom-right)",
        "window": "(left, right), None = unbounded; keys within [i - left, i + right], aligned as causal is",
        "scale": "float, default D ** -0.5",
        "softcap": "float; c * tanh(scores / c), after scale, before bias and mask",
        "alibi_slopes": "(H,); adds -slope * distance",
        "key_lengths": "(B,) int; keys at and past the length are padding and are never read",
        "sinks": "(H,); one more logit per head that takes weight and gives nothing",
        "return_lse": "also return the log-sum-exp, natural logarithm, (B,H,Q); -inf on empty rows, or what stands for it",
    }
)


SEMANTICS: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType(
    {
        "causal_alignment": (
            ("bottom-right", "top-left"),
            "the key that the first query may see last when Q != K",
        ),
        "empty_rows": (
            ("zero", "nan", "uniform", "uniform with gradients"),
            "the output of a query that sees no key, and whether it passes gradients on to query and key",
        ),
        "masked_values": (
            ("ignored", "read"),
            "whether NaN in a key or value that is invisible gets through",
        ),
        "deterministic": (("yes", "no"), "the same call twice gives the same bits"),
        "batch_invariant": (("yes", "no"), "an entry's bits do not depend on the rest of its batch"),
        "delta": (("weights", "output"), "rowsum(dP * P), or rowsum(dO * O) from the stored output"),
        "head_gradients": (
            ("added", "stored"),
            "the gradients of query heads that share a key: added in accumulators, or stored each and then added",
        ),
        "merges": (
            ("few", "in sequence"),
            "results of tiles: put together by few rounded log-sum-exps, or one after the other by as many as there are tiles",
        ),
        "exponent": (
            ("difference", "contracted"),
            "score minus maximum: zero where they are equal, or, from a fused multiply-add, up to a unit roundoff of the score",
        ),
        "softmax_gradient": (
            ("formula", "steps"),
            "P (dP - rowsum(P dP)), or exp, sum, division and maximum differentiated one by one",
        ),
        "row_sum": (
            ("exponentials", "rounded"),
            "what a row's weights are divided by: the sum of the exponentials, or of them as rounded to the dtype",
        ),
        "split_results": (
            ("kept", "stored"),
            "results of splits of the keys, until they are merged: kept in accumulators, or stored in the dtype",
        ),
        "lse": (("natural", "base2"), "the logarithm of the log-sum-exp"),
        "empty_lse": (("-inf", "finite"), "the log-sum-exp of a query that sees no key"),
        "lse_gradient": (("yes", "no"), "the log-sum-exp has a gradient, as the output has"),
        "mismatched_sizes": (
            ("raise", "cut"),
            "sizes that do not fit one another raise, or what is too long is not looked at",
        ),
    }
)


# Operation -> its first parameters.
OPERATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: tuple(operation.parameters) for name, operation in DESCRIBED.items()}
)


DTYPES = ("float64", "float32", "float16", "bfloat16")


DEVICES = ("cpu", "cuda")


SLOW = 0.1  # share of the usual examples: an interpreter's


# What a function may take besides the options of a problem. Not every call can be given it, so laws ask for it by name.
FURTHER = ("dropout", "longest_query", "longest_key")


ATTENTIONS = (
    "attention",
    "packed_attention",
    "cached_attention",
    "paged_attention",
)  # their options are attention's


@dataclass(frozen=True)
class Finding:
    """A known bug in somebody else's code.

    - `folder`: where it is described
    - `when`: a function that says whether the bug can show on a `Problem`; without it, on every problem
    - `sentence`: what is wrong, in one line
    - `listed`: its place in a file of known failures, if it comes from one

    If the law fails only on problems for which `when` returns False, that is not this bug: it counts as a failure.
    """

    folder: str
    when: Callable[[Any], bool] | None = None
    sentence: str = ""
    listed: str = ""

    def __str__(self) -> str:
        return self.folder

    def explains(self, problems: Sequence[Any]) -> bool:
        """Whether it can have shown in an example that called the implementation on these problems."""
        return self.when is None or any(self.when(problem) for problem in problems)


STANDARD_SCALE = "D ** -0.5"  # among the neutral values: it depends on the problem
EVERY_KEY = "every key"  # among the neutral values: a mask by which a query may attend to every key
