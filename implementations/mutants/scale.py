"""The factor between query-key products and scores: D^-1/2 unless the caller gives one."""

from __future__ import annotations

import numpy as np

from qkverify.implementations.mutants.correct import textbook
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant


@mutant("B001", step="scale", evidence="stated", threads="mlc-ai/mlc-llm#3426")
def fallback_path_forgets_the_scale(call: Call) -> float:
    """The path taken without causality calls the kernel with its default scale, 1."""
    return textbook.scale(call) if call.causal else 1.0  # right: textbook.scale(call)


@mutant(
    "B002",
    step="scale",
    evidence="stated",
    threads="aladdinpersson/Machine-Learning-Collection#65 omihub777/ViT-CIFAR#12 "
    "Graylab/DL4Proteins-notebooks#12",
)
def scale_uses_the_model_width(call: Call) -> float:
    """The default scale is (H D)^-1/2, from the width of the model, instead of D^-1/2, from a head's."""
    if call.scale is not None:
        return call.scale
    return max(call.H * call.D, 1) ** -0.5  # right: max(call.D, 1) ** -0.5


@mutant("B004", step="add_bias", evidence="stated", threads="tenstorrent/tt-metal#42891")
def bias_is_scaled_too(call: Call, scores: np.ndarray) -> np.ndarray:
    """The scale is folded into the exponent, exp((qk + bias - max) scale): it multiplies the bias as well."""
    return scores if call.bias is None else scores + call.bias * textbook.scale(call)  # right: + call.bias
