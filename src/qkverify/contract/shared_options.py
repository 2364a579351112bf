"""What is said of the options that several operations have."""

from __future__ import annotations

SERVING = {"causal, scale, softcap": "as for attention"}
SERVED = "a result without gradients offers none; who gives only some of them declares differentiable=False"
LAYER_WEIGHTS = "a mapping: w_q, w_k, w_v, w_o (M,M), w_1 (M,F), b_1 (F,), w_2 (F,M), b_2, gain_1, shift_1, gain_2, shift_2 (M,)"
ENCODINGS = {"layout": ("interleaved", "concatenated")}
ROTATIONS = {"layout": ("interleaved", "half")}
LAYER_DEFAULTS = {"norm_first": (False, True), "eps": (1e-5, 1e-6, 1e-12)}
LAYER_OPTIONS = {
    "heads": "required", "norm_first": "normalise before each sublayer instead of after it",
    "eps": "added to the variance, inside of the root",
}  # fmt: skip
NORM_OPTIONS = {"eps": "added inside of the root"}
NORM_SPELLINGS = {
    "weight": ("gamma", "gain", "scale", "w", "g", "a"), "bias": ("beta", "shift", "b"),
    "eps": ("epsilon", "variance_epsilon", "norm_eps"),
}  # fmt: skip
NORM_EPS = (
    1e-5,
    1e-6,
    1e-12,
    2.0**-23,
    2.0**-52,
    1e-8,
    1e-3,
)  # torch's rms_norm has that of float32 or float64
NORM_OFFSET = "where a function has no such parameter, the gain is found out to be the weight, or 1 + the weight (offset)"
