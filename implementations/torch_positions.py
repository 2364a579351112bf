"""Positions in torch: sinusoidal encodings, alone and in an embedding, and rotary; angles in float64, one rounding at the end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qkverify import implementation

BASE = 10000.0


def angles(positions: Tensor, dim: int) -> Tensor:
    """p / 10000^(2i/dim), float64: (..., L) -> (..., L, dim/2)."""
    steps = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float64) / dim
    return positions.double()[..., None] / BASE**steps


def joined(first: Tensor, second: Tensor, layout: str) -> Tensor:
    """Two halves (..., n) as neighbours ("interleaved") or one after the other: (..., 2n)."""
    return (
        torch.stack([first, second], dim=-1).flatten(-2)
        if layout == "interleaved"
        else torch.cat([first, second], dim=-1)
    )


@implementation(
    name="torch_encoding",
    dtypes=("float32", "float64", "bfloat16"),
    devices=("cpu", "cuda"),
)
def positional_encoding(
    length: int, dim: int, *, layout: str = "interleaved", dtype: str = "float32", device: str = "cpu"
) -> Tensor:
    """Sines and cosines of the angles: (length, dim)."""
    angle = angles(torch.arange(length, device=device), dim)
    return joined(angle.sin(), angle.cos(), layout).to(getattr(torch, dtype))


@implementation(
    name="torch_rotary",
    dtypes=("float32", "float64", "bfloat16"),
    devices=("cpu", "cuda"),
)
def rotary(x: Tensor, positions: Tensor, *, layout: str = "interleaved") -> Tensor:
    """Each pair of x (B,H,L,D) turned by the angle of its position (L,); computed in float32 or wider."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    first, second = (wide[..., 0::2], wide[..., 1::2]) if layout == "interleaved" else wide.chunk(2, dim=-1)
    angle = angles(positions, x.shape[-1])
    sine, cosine = angle.sin().to(wide.dtype), angle.cos().to(wide.dtype)
    return joined(first * cosine - second * sine, first * sine + second * cosine, layout).to(x.dtype)


@implementation(
    name="torch_rotary_pair",
    dtypes=("float32", "float64", "bfloat16"),
    devices=("cpu", "cuda"),
)
def rotary_pair(
    query: Tensor, key: Tensor, positions: Tensor, *, layout: str = "interleaved"
) -> tuple[Tensor, Tensor]:
    """Query (B,H,L,D) and key (B,G,L,D), both turned by the angles of their positions (B,L)."""
    every_head = positions[:, None]  # (B,1,L)
    return rotary(query, every_head, layout=layout), rotary(key, every_head, layout=layout)


SUMS_IN_STORAGE_DTYPE = "reports/findings/torch-cpu-embedding-backward-accumulates-in-storage-dtype"


@implementation(
    name="torch_embedding",
    dtypes=("float32", "float64", "bfloat16"),
    findings={"embedding_gradient_sums_over_places[cpu-bfloat16]": SUMS_IN_STORAGE_DTYPE},
    devices=("cpu", "cuda"),
)
def embedding(
    tokens: Tensor, table: Tensor, *, padding: Tensor | None = None, layout: str = "interleaved"
) -> Tensor:
    """sqrt(M) table[token] + encoding of its position, from the first that is no padding: (B,L), (V,M) -> (B,L,M)."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    if padding is not None:
        places = (places - padding[:, None]).clamp(min=0)
    angle = angles(places, table.shape[1])
    encoded = joined(angle.sin(), angle.cos(), layout).to(table.dtype)
    return nn.functional.embedding(tokens, table) * table.shape[1] ** 0.5 + encoded
