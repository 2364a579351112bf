"""What is said of merged attention."""

from __future__ import annotations

from qkverify.contract.operation import Operation

ORDER = 105
OPERATION = Operation(
    "attention to two sets of keys together, of the output and the log-sum-exp of each",
    {"o_a": "(..., E)", "lse_a": "(...), natural logarithms or to base 2", "o_b": "(..., E)", "lse_b": "(...)"},
    "(..., E) and (...), the output and its log-sum-exp", {},
    ("a log-sum-exp of -inf has no share; where both are -inf, the output is 0 and the log-sum-exp -inf",
     "in half precision the log-sum-exps are float32",
     "the base, and whether the output is a sum of shares or o_b and a share of the difference, are found out, said and held to"),
    {"base": ("e", "2"), "weights": ("by shares", "by the difference")},
    named=("merge", "combine"),
    spellings={"o_a": ("v_a",), "lse_a": ("s_a",), "o_b": ("v_b", "out_b", "output_b", "o2"), "lse_b": ("s_b", "lse2")},
)  # fmt: skip
