"""The tiles of a call: measured ones where a GPU has the shared memory of a Hopper, plain ones elsewhere."""

import functools
from typing import Any, NamedTuple

import torch


class Tiles(NamedTuple):
    """Queries and keys of a tile, warps that share a program, copies of a tile in shared memory, and the most registers of
    a thread (None: as the compiler likes).

    With two copies the next tile is only asked for once the products of this one are issued, and waited for at once: it
    takes three to hide a load.
    """

    queries: int
    keys: int
    warps: int = 4
    stages: int = 1
    registers: int | None = None


INTERPRETED = Tiles(32, 32)  # small, so that small problems have edges, inner tiles and tiles to skip
PLAIN = {2: Tiles(32, 32, 4), 4: Tiles(32, 32, 8)}  # by bytes of a number, for any GPU and any strides
PLAIN_LONG = Tiles(16, 16, 4)  # for float32 heads of 256, whose products fill the registers
SHARED_MEMORY = 227 * 1024  # bytes that one program may take on Hopper: HOPPER needs no more

# (kernel, padded head size, whether keys end at a diagonal) -> tiles for 16-bit numbers in aligned memory. Chosen from the
# machine code for sm_90: loops over inner tiles that spill no accumulator and issue their wgmma asynchronously. The two
# kinds of masks are apart because the CAREFUL loops, which only the second has, take registers from the others.
# `python -m qkverify.implementations.triton_flash.tuning` measures the choice on such a GPU and prints this table anew.
HOPPER = {
    ("forward", 64, False): Tiles(128, 64, 4, 3),
    ("forward", 64, True): Tiles(128, 64, 4, 3),
    ("forward", 128, False): Tiles(128, 128, 8, 3),
    ("forward", 128, True): Tiles(128, 128, 8, 3),
    ("forward", 256, False): Tiles(64, 64, 8, 3),
    ("forward", 256, True): Tiles(64, 64, 8, 3),
    ("queries", 64, False): Tiles(128, 64, 4, 3),
    ("queries", 64, True): Tiles(128, 64, 4, 3),
    ("queries", 128, False): Tiles(128, 64, 8, 3),
    ("queries", 128, True): Tiles(128, 64, 8, 3),
    ("queries", 256, False): Tiles(64, 32, 8, 2),
    ("queries", 256, True): Tiles(64, 32, 8, 2),
    ("keys", 64, False): Tiles(64, 128, 8, 3),
    ("keys", 64, True): Tiles(64, 128, 8, 3),
    ("keys", 128, False): Tiles(32, 128, 8, 3),
    ("keys", 128, True): Tiles(32, 128, 8, 3),
    ("keys", 256, False): Tiles(32, 64, 8, 2),
    ("keys", 256, True): Tiles(32, 64, 8, 2),
}


def compiled_tiles(part: str, itemsize: int, block: int, hopper: bool, diagonal: bool) -> Tiles:
    """`hopper`: aligned memory, and shared memory as Hopper's. `diagonal`: the keys that a query sees end with the query."""
    if hopper and itemsize == 2:
        return HOPPER[part, block, diagonal]
    return PLAIN_LONG if itemsize > 2 and block > 128 else PLAIN[itemsize]


def _tiles(part: str, query: torch.Tensor, flags: dict[str, Any], unit: int) -> Tiles:
    if query.device.type != "cuda":
        return INTERPRETED
    hopper = unit > 1 and _shared_memory(query.device) >= SHARED_MEMORY
    block = max(flags["BLOCK_D"], flags["BLOCK_E"])
    return compiled_tiles(part, query.element_size(), block, hopper, flags["RIGHT"])


@functools.cache
def _shared_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin
