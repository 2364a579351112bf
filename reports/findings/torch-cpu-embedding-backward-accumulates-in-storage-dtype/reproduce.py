"""torch's CPU embedding adds up the gradient of a word in the table's own dtype. Needs torch only."""

import torch
from torch.nn.functional import embedding

print(f"torch {torch.__version__}")
for dtype, places in ((torch.bfloat16, 1000), (torch.float16, 3000)):
    table = torch.zeros(1, 1, dtype=dtype, requires_grad=True)
    words = embedding(torch.zeros(places, dtype=torch.long), table)
    words.backward(torch.ones_like(words))
    print(
        f"{places} places of one word, {str(dtype).removeprefix('torch.'):8}   exact {places}   embedding {table.grad.item():g}"
    )
