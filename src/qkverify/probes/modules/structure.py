"""What the output of a module depends on: seen by changing one token, whatever its weights are and whether its numbers are right.

batch first, (B,L,M)     another entry's output does not change
always causal            no later token changes the first one's output
what a mask means        under a causal mask, later tokens change nothing and earlier ones do
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from qkverify.contract.modules.calling import AXES, KINDS, Calling, Mask, part_of_shape
from qkverify.contract.modules.multi_head import randomised
from qkverify.errors import ContractError

BATCH, LENGTH = 2, 5  # different, so that a result's shape tells them apart
LONG = 257  # tokens, the most that laws generate


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """For calls that find out: without warnings, gradients or a trace in the random state."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Observed:
    """A module with random weights, called with tokens of which some are changed."""

    def __init__(self, module: torch.nn.Module, width: int) -> None:
        # In training mode torch's layers take no fused path, which refuses some masks; nothing is dropped at rate zero.
        self.module, self.width = randomised(copy.deepcopy(module)), width
        parameter = next(module.parameters(), None)
        self.dtype = torch.float32 if parameter is None else parameter.dtype
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(BATCH, LENGTH, width, generator=generator, dtype=self.dtype)

    def output(self, calling: Calling, x: Any, *, causal: bool = False) -> Any:
        """(B,L,M) for x (B,L,M), NaN as a number. Raises what the module raises."""
        return torch.nan_to_num(calling(self.module, x, causal), nan=1e6)

    def changes(self, calling: Calling, entry: int | None, token: int | None, *, causal: bool = False) -> Any:
        """Which tokens (B,L) have another output when a token (of one entry, or of all) has other numbers."""
        other = self.x.clone()
        rows = slice(None) if entry is None else entry
        columns = slice(None) if token is None else token
        other[rows, columns] = other[rows, columns].flip(-1) * 2
        outputs = [self.output(calling, x, causal=causal) for x in (self.x, other)]
        return (outputs[0] != outputs[1]).any(-1)


def called(observed: Observed, calling: Calling) -> Calling:
    """With the part of the result that is the output. Raises what the plainest call raises, or ContractError."""
    x = observed.x if calling.batch_first else observed.x.transpose(0, 1)
    returned: list[Any] = []

    def call(*tokens: Any, **keywords: Any) -> Any:
        returned.append(observed.module(*tokens, **keywords))
        return observed.x if calling.batch_first else observed.x.transpose(0, 1)

    calling(call, observed.x, False)
    shapes = {tuple(x.shape[:2])}
    for shape in shapes:
        with contextlib.suppress(ContractError):
            return replace(calling, returns=_part(returned[0], shape))
    raise ContractError(f"no part of the result has shape {(*x.shape[:2], '.')}")


def _part(returned: Any, first: tuple[int, ...]) -> int | str | None:
    """The first part whose first axes are these: the last one is the width of the heads together, which may be any."""
    if isinstance(returned, torch.Tensor):
        if tuple(returned.shape[:2]) == first and returned.ndim == 3:
            return None
        raise ContractError(f"the result has shape {tuple(returned.shape)}")
    candidates = (
        returned.values() if isinstance(returned, dict) else getattr(returned, "__dict__", {}).values()
    )
    candidates = returned if isinstance(returned, tuple | list) else candidates
    for x in candidates:
        if isinstance(x, torch.Tensor) and x.ndim == 3 and tuple(x.shape[:2]) == first:
            return part_of_shape(returned, tuple(x.shape))
    raise ContractError(f"a result of type {type(returned).__name__} without such an array")


def layout(observed: Observed, calling: Calling) -> Calling:
    """With the axis of the batch: the one along which nothing is mixed; as the module declares, or first, where neither is."""
    declared = getattr(observed.module, "batch_first", None)
    if isinstance(declared, bool):
        return replace(calling, batch_first=declared)
    for batch_first in (True, False):
        tried = replace(calling, batch_first=batch_first)
        changed = observed.changes(tried, 0, None)
        if changed[0].any() and not changed[1:].any():
            return tried
    return replace(calling, batch_first=True)


def always_causal(observed: Observed, calling: Calling) -> bool:
    """Whether the first token's output depends on no later one, or on the next alone; or the module holds a causal mask."""
    changed = observed.changes(calling, None, LENGTH - 1)
    return not bool(changed[:, 0].any()) or any(_triangular(x) for x in observed.module.buffers())


def _triangular(buffer: Any) -> bool:
    """Whether a buffer (..., n, n) is zero (False, -inf) on one side of its diagonal alone."""
    if buffer.ndim < 2 or buffer.shape[-1] != buffer.shape[-2] or buffer.shape[-1] < 2:
        return False
    matrix = buffer.reshape(-1, *buffer.shape[-2:])[0].to(torch.float64)
    upper, lower = matrix.triu(2), matrix.tril(-2)
    both = torch.ones_like(matrix)
    above, below = upper[both.triu(2) > 0], lower[both.tril(-2) > 0]
    if not above.numel() or above.unique().numel() != 1 or below.unique().numel() != 1:
        return False
    return bool(above[0] != below[0])


def hides_the_future(observed: Observed, calling: Calling) -> bool:
    """Whether the causal call is causal: a later token changes nothing, an earlier one does."""
    last = observed.changes(calling, None, LENGTH - 1, causal=True)
    first = observed.changes(calling, None, 0, causal=True)
    return not bool(last[:, :-1].any()) and bool(first[:, -1].all() and last[:, -1].all())


def mask(observed: Observed, calling: Calling) -> tuple[Calling, bool]:
    """With the reading of its mask under which the causal call is causal, and whether there is one; else the plainest that is
    taken."""
    taken: list[Calling] = []
    for parameter, axes, kind in product(calling.masks, AXES, KINDS):
        tried = replace(calling, mask=Mask(parameter, kind, axes))
        with contextlib.suppress(Exception):  # this reading is refused
            if hides_the_future(observed, tried):
                return tried, True
            taken.append(tried)
    return (taken[0] if taken else calling), False


def longest(observed: Observed, calling: Calling) -> int:
    """The longest sequence that the module takes, up to `LONG`."""

    def taken(length: int) -> bool:
        try:
            calling(observed.module, torch.zeros(1, length, observed.width, dtype=observed.dtype), False)
        except Exception:  # whatever it raises: a shorter sequence shows that the length is at fault
            return False
        return True

    with quiet():
        if taken(LONG):
            return LONG
        least, most = LENGTH, LONG - 1
        while least < most:
            middle = (least + most + 1) // 2
            least, most = (middle, most) if taken(middle) else (least, middle - 1)
    return least
