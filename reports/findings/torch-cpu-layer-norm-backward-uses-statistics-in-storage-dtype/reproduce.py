"""torch's CPU layer norm keeps mean and inverse deviation for its backward pass in the dtype of its input. Needs torch only."""

import torch
from torch.nn.functional import layer_norm

print(f"torch {torch.__version__}")


def gradients(row, dtype):
    """Of a token and of the weight, for an upstream gradient of ones."""
    x = torch.tensor(row, dtype=dtype, requires_grad=True)
    weight = torch.ones(len(row), dtype=dtype, requires_grad=True)
    output = layer_norm(x, (len(row),), weight)
    return torch.autograd.grad(output, (x, weight), torch.ones_like(output))


for dtype in (torch.bfloat16, torch.float16):
    of_x, of_weight = gradients([100.0, 100.5, 101.5], dtype)
    _, exact = gradients([100.0, 100.5, 101.5], torch.float64)
    print(
        f"{str(dtype).removeprefix('torch.'):8}  of x, exactly 0: {[round(g, 3) for g in of_x.tolist()]}"
        f"  of the weight: {[round(g, 3) for g in of_weight.tolist()]}  exact {[round(g, 3) for g in exact.tolist()]}"
    )
