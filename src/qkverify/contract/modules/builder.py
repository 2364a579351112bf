"""Modules built for the sizes of a call, in evaluation mode, with no trace in the random state.

`torch.func.functional_call` puts a caller's weights into a module for a while, so that two threads must not share one: a module
is lent to one call at a time, and built anew where all of its sizes are lent.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any

import torch

from qkverify import foreign_text
from qkverify.contract.modules.constructor import Construction
from qkverify.errors import UnsupportedCase

LONGEST = 300  # tokens of a sequence that a class is told of: more than any law generates
KEPT = 64  # modules
VOCABULARY = 11
_BUILDING = Lock()  # the random state is one for all threads


class Builder:
    """`with builder.lent(sizes, dtype, device) as module`: built by a class for these sizes, or a copy of the one instance."""

    def __init__(self, origin: Construction | torch.nn.Module) -> None:
        self.origin = origin
        self._free: dict[tuple[Any, ...], list[torch.nn.Module]] = {}

    @property
    def fixed(self) -> bool:
        """Whether there is one instance, which has its sizes."""
        return isinstance(self.origin, torch.nn.Module)

    @contextlib.contextmanager
    def lent(self, sizes: Mapping[str, Any], dtype: torch.dtype, device: Any) -> Iterator[torch.nn.Module]:
        """Raises UnsupportedCase where the class refuses the sizes."""
        key = (*sizes.items(), dtype, str(device))
        try:
            module = self._free.get(key, []).pop()
        except IndexError:
            module = self._made(sizes).to(device=device, dtype=dtype).eval()
        try:
            yield module
        finally:
            if len(self._free) >= KEPT and key not in self._free:
                self._free.clear()
            self._free.setdefault(key, []).append(module)

    def _made(self, sizes: Mapping[str, Any]) -> torch.nn.Module:
        if isinstance(self.origin, torch.nn.Module):
            return copy.deepcopy(self.origin)
        try:
            return construct(self.origin, sizes)
        except Exception as error:
            told = ", ".join(f"{name} {size}" for name, size in sizes.items() if name in ("width", "heads"))
            raise UnsupportedCase(
                f"{self.origin.cls.__name__} is not built for {told}: {foreign_text.of_error(error)}"
            ) from error


def construct(origin: Construction, sizes: Mapping[str, Any]) -> torch.nn.Module:
    """A new instance. Raises what the constructor raises; the random state is as before."""
    told = {
        "length": LONGEST,
        "inner": 7,
        "vocabulary": VOCABULARY,
        "off": 0.0,
        "yes": True,
        "nothing": None,
        **sizes,
    }
    with _BUILDING, torch.random.fork_rng(devices=[]):
        built: torch.nn.Module = origin(told)
    return built
