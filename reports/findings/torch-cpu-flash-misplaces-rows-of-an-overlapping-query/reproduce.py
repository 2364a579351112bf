"""torch's CPU flash attention misplaces numbers where the rows of the query overlap in memory. Needs torch only."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

query = torch.zeros(4).unfold(0, 3, 1)[
    None, None
]  # (1,1,2,3): the second row begins one number after the first
key, value = torch.zeros(1, 1, 1, 3), torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)

print(f"torch {torch.__version__}")
for what, given in (("overlapping", query), ("contiguous", query.contiguous())):
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(backend):
            output = scaled_dot_product_attention(given, key, value)
        name = backend.name.lower().removesuffix("_attention")
        print(f"{what:11} {name:6} strides {output.stride()[2:]}   {output[0, 0].tolist()}")
