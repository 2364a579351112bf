"""Named cases to time: the shapes of attention in models that people run, each with its source.

A workload is data: sizes, what is visible, and where the numbers come from. The table stands in TOML files,
`benchmarks/workloads/<family>.toml`, which `workload_files` reads: adding one edits no code, and a file of a
user's own is as good as those. Everything that times, counts or reports iterates that table. Sizes are those
of one attention layer; the batch is small, so that a case runs on a laptop's CPU and is still the model's
shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import ml_dtypes
import msgspec
import numpy as np

from qkverify.contract import DTYPES
from qkverify.errors import UsageError
from qkverify.problem import activations
from qkverify.problem.attention_problem import Problem

# A file is checked against these, so a field that is added here is checked there.
Size = Annotated[int, msgspec.Meta(ge=1)]
Length = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One attention layer. `sizes` are given by the dimension letters of `contract`; lengths in tokens."""

    name: str
    source: str
    heads: Size
    queries: Size
    key_size: Size
    batch: Size = 1
    kv_heads: Size | None = None
    keys: Size | None = None
    value_size: Size | None = None
    causal: bool = True
    window: tuple[Length | None, Length | None] | None = None
    key_lengths: tuple[Length, ...] | None = None
    scale: Positive | None = None
    softcap: Positive | None = None
    values: Literal["normal", "activations"] = "normal"

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {
            "B": self.batch,
            "H": self.heads,
            "G": self.kv_heads or self.heads,
            "Q": self.queries,
            "K": self.keys or self.queries,
            "D": self.key_size,
            "E": self.value_size or self.key_size,
        }

    @property
    def options(self) -> str:
        """What is visible besides `causal`, as a person reads it; empty for nothing."""
        words = []
        if self.window is not None:
            words.append(
                "window " + " .. ".join("open" if side is None else str(side) for side in self.window)
            )
        if self.key_lengths is not None:
            words.append("key lengths " + ", ".join(map(str, self.key_lengths)))
        words += [f"{n} {getattr(self, n):g}" for n in ("scale", "softcap") if getattr(self, n) is not None]
        if self.values != "normal":
            words.append(f"real {self.values}")
        return "; ".join(words)

    def problem(self, dtype: str, *, seed: int = 0) -> Problem:
        """The case as arrays: standard normal query, key, value and upstream, equal in every dtype.

        Standard normal is what a layer norm leaves, and with 1/sqrt(D) the scores have variance one. Where `values` says
        so, query, key and value are a model's instead (see `activations`), whatever the seed.
        """
        numbers, stored = np.random.default_rng(seed), storage(dtype)
        case = self._filled(lambda shape: numbers.standard_normal(shape, dtype=np.float32).astype(stored))
        if self.values == "normal":
            return case
        given = activations.first(self.sizes["K"])
        return case.replace(**{name: array[None].astype(stored) for name, array in given.items()})

    def outline(self, dtype: str) -> Problem:
        """The case without numbers, which takes no memory: for counting what there is to do."""
        zero = np.zeros((), storage(dtype))
        return self._filled(lambda shape: np.broadcast_to(zero, shape))

    def _filled(self, fill: Callable[[tuple[int, ...]], np.ndarray]) -> Problem:
        s = self.sizes
        return Problem(
            query=fill((s["B"], s["H"], s["Q"], s["D"])),
            key=fill((s["B"], s["G"], s["K"], s["D"])),
            value=fill((s["B"], s["G"], s["K"], s["E"])),
            upstream=fill((s["B"], s["H"], s["Q"], s["E"])),
            causal=self.causal,
            window=self.window,
            key_lengths=None if self.key_lengths is None else np.array(self.key_lengths, np.int32),
            scale=self.scale,
            softcap=self.softcap,
        )


def storage(dtype: str) -> np.dtype[np.generic]:
    """The NumPy dtype called `dtype`; NumPy itself has no bfloat16, ml_dtypes does."""
    if dtype not in DTYPES:
        raise UsageError.unknown("dtype", dtype, DTYPES)
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


BOTH = ("forward", "forward+backward")
FIRST, EVERY = ("float32", "bfloat16"), ("float32", "bfloat16", "float64", "float16")


class GridCase(NamedTuple):
    """A workload of the small grid, and the directions and dtypes in which it is timed there."""

    name: str
    directions: tuple[str, ...] = BOTH
    dtypes: tuple[str, ...] = FIRST


# What a machine of each kind times when nothing is asked for: what people run (a prompt, one more token, a padded batch), from
# short to long; the dtypes that are rarer at one length.
DECODING = GridCase("grouped-decode-4096", ("forward",))
SMALL_GRID: dict[str, tuple[GridCase, ...]] = {
    "cpu": (
        DECODING,
        GridCase("transformer-base-256"),
        GridCase("bert-base-padded", ("forward",)),
        GridCase("transformer-base-1024", dtypes=EVERY),
        GridCase("transformer-base-4096"),
    ),
    "cuda": (
        DECODING,
        *(GridCase(f"transformer-base-{length}") for length in (256, 512, 2048, 4096)),
        GridCase("bert-base-padded", ("forward",)),
        GridCase("transformer-base-1024", dtypes=EVERY),
        GridCase("gpt2-small"),
        GridCase("llama3-8b-prefill"),
    ),
}


# For an attention that takes no `causal`, or the same sizes for queries and keys only: encoders, from short to long.
PLAIN_GRID = ("minilm-l6-128", "bert-base", "whisper-large-encoder")


@cache
def table() -> dict[str, Workload]:
    """Every workload that is shipped, by its name."""
    from qkverify.timing.workload_files import shipped

    return {workload.name: workload for workload in shipped()}


def __getattr__(name: str) -> dict[str, Workload]:
    if name == "WORKLOADS":  # read when it is first asked for
        return table()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def named(name: str) -> Workload:
    """The workload called `name`. Raises UsageError naming what exists and what is nearest."""
    try:
        return table()[name]
    except KeyError:
        raise UsageError.unknown("workload", name, table()) from None


def resolve(names_or_files: Sequence[str]) -> list[Workload]:
    """The workloads that are meant by names, patterns (`gpt2*`) and paths of TOML files, in that order, each once.

    Raises UsageError for a name, pattern or file that gives none, for a file that is wrong, and where two
    different workloads have one name: results go by the name.
    """
    workloads: dict[str, Workload] = {}
    for name in names_or_files:
        for workload in _meant(name):
            if workloads.setdefault(workload.name, workload) != workload:
                raise UsageError(
                    f"two different workloads have the name {workload.name!r}; the second is in {name}"
                )
    return list(workloads.values())


def _meant(name: str) -> list[Workload]:
    if name.endswith(".toml"):
        from qkverify.timing.workload_files import read

        return read(Path(name))
    if not set(name) & set("*?["):
        return [named(name)]
    matching = [workload for workload in table().values() if fnmatchcase(workload.name, name)]
    if not matching:
        raise UsageError(f"no workload has a name like {name!r}\n  workloads: {', '.join(sorted(table()))}")
    return matching


def small_grid(device: str) -> list[Workload]:
    """The cases of the small grid of `device`, from short to long."""
    return [named(case.name) for case in SMALL_GRID[device]]


def plain_grid() -> list[Workload]:
    """Cases that every attention can run, from short to long: no option, as many keys as queries, as many heads of each."""
    return [named(name) for name in PLAIN_GRID]


def in_small_grid(name: str, device: str, direction: str | None, dtype: str | None) -> bool:
    """Whether the small grid times a workload of its own in this direction and dtype; None is any."""
    return any(
        name == case.name
        and (direction or case.directions[0]) in case.directions
        and (dtype or case.dtypes[0]) in case.dtypes
        for case in SMALL_GRID[device]
    )
