"""A tensor's storage: what it is a view of begins elsewhere."""

from __future__ import annotations

import torch

from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import mutant
from qkverify.implementations.mutants.correct.torch_textbook import TORCH_TEXTBOOK, wide


@mutant("A054", step="add_bias", base=TORCH_TEXTBOOK, offers=("bias", "scale"), evidence="inferred", arrays="torch",
        dtypes=("float32",), masked_values="read", differentiable=False)  # fmt: skip
def bias_is_read_from_the_start_of_its_storage(call: Call, scores: torch.Tensor) -> torch.Tensor:
    """The bias is read by its strides from the first number of its storage, as if its storage offset were 0."""
    read = call.bias.as_strided(call.bias.shape, call.bias.stride(), 0)  # right: call.bias
    return scores + wide(read)
