"""torch's CPU flash attention takes the number of keys from `value`, and reads past the end of `key`. Needs torch only."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

buffer = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(
    1, 1, 4, 1
)  # two keys, and two numbers that are nobody's business
query, key = torch.full((1, 1, 1, 1), 100.0), buffer[:, :, :2]
value = torch.tensor([1.0, 2.0, 30.0, 40.0]).reshape(1, 1, 4, 1)

print(f"torch {torch.__version__}: 2 keys, 4 values")
for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
    name = backend.name.lower().removesuffix("_attention")
    try:
        with sdpa_kernel(backend):
            output = scaled_dot_product_attention(query, key, value)
        print(f"{name:6} {output.item()}: no error")
    except RuntimeError as error:
        print(f"{name:6} raises: {str(error).splitlines()[0]}")
