"""Which tiles of triton_flash are fastest on this GPU, and how do they stand beside torch's own kernels?

    python -m qkverify.implementations.triton_flash.tuning              on a Hopper GPU: a table to paste, TFLOP/s, ratios
    python -m qkverify.implementations.triton_flash.tuning --compile    anywhere: what each candidate needs of such a GPU

Each kernel, head size and kind of mask is a contest (see `halving`). Its candidates are compiled first, by processes side
by side that leave the machine code in Triton's cache; those that no multiprocessor can hold are out. Each that is left is
checked once against the reference, like any timed call, and then timed with the clock of every other benchmark. At the
end torch's back ends, the present tiles and the best take turns on every length. All of it keeps to a budget, and a run
that was stopped goes on where it was.

It stands with the kernels, and not among the benchmarks, because it knows their inside: it exists for the table HOPPER.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton

from qkverify.contract import frameworks, registry
from qkverify.implementations import triton_flash
from qkverify.implementations.triton_flash import autograd
from qkverify.implementations.triton_flash.tiles import HOPPER, SHARED_MEMORY, Tiles, _shared_memory
from qkverify.implementations.triton_flash.tuning.candidates import (
    PARTS,
    SIZES,
    Entry,
    Needs,
    call_of,
    candidates,
    compile_all,
    read,
    spelled,
)
from qkverify.implementations.triton_flash.tuning.halving import (
    Contest,
    DeviceLost,
    Journal,
    Ranking,
    Session,
)
from qkverify.results import Direction
from qkverify.runs.run import Run
from qkverify.timing.clocks import clock_for
from qkverify.timing.sampled_rows import margin_of
from qkverify.timing.sampling import Subject
from qkverify.timing.work import work
from qkverify.timing.workloads import Workload

LENGTHS = (1024, 2048, 4096, 8192, 16384)
# Of every case, over its batch and over its heads: as the FlashAttention papers time.
TOKENS, WIDTH = 16384, 2048
BACKENDS = ("torch_sdpa-flash", "torch_sdpa-cudnn", "torch_sdpa-efficient")
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
CHECKED = 1000  # queries: no tile divides it, and the reference has time for all gradients of a head
COMPARED_ROUNDS = 10
COMPILING, TUNING = 0.5, 0.75  # of the budget may have passed when each ends
WORTH_A_CHANGE = 0.99  # of the present seconds: what is not better by the width of an A/A control stays


# -- On the GPU --------------------------------------------------------------------------------------------------------


def case_of(size: int, length: int, *, diagonal: bool) -> Workload:
    return Workload(
        name="tiles", source="FlashAttention-2, section 4.1", batch=TOKENS // length, heads=WIDTH // size,
        key_size=size, queries=length, causal=diagonal,
    )  # fmt: skip


@contextlib.contextmanager
def in_table(entries: Mapping[Entry, Tiles]) -> Iterator[None]:
    """With these tiles in HOPPER."""
    before = dict(HOPPER)
    HOPPER.update(entries)
    try:
        yield
    finally:
        HOPPER.update(before)


class Device:
    """The current CUDA device as the contests need it; a CPU, where no tiles can be chosen, shows that the calls are right."""

    def __init__(self, device: str = "cuda") -> None:
        self._device, self._synchronise = device, frameworks.get("torch").synchronise
        self.clock = clock_for("torch", device, self._synchronise)
        self._run = Run(registry.find("triton_flash")[0], device, "bfloat16")

    def healthy(self) -> None:
        try:
            self._synchronise(self._device)
        except RuntimeError as error:  # after an access to memory that is not there every call fails
            raise DeviceLost(str(error)) from error

    def check(self, entry: Entry, tiles: Tiles) -> str:
        """Against the reference, on a length that no tile divides, by the bound of every timed call."""
        problem = self._problem(entry.size, entry.diagonal)
        direction: Direction = "forward" if entry.part == "forward" else "forward+backward"
        with in_table({entry: tiles}):
            output = self._run.callable(problem, direction)()
        margin = margin_of(self._run, problem, output, direction)
        if margin is None:
            return "its output cannot be checked"
        return (
            ""
            if margin <= 1
            else f"its output is wrong: {margin:.3g} times its bound away from the reference"
        )

    def subject(self, entry: Entry, tiles: Tiles, length: int) -> Subject:
        call = call_of(entry, *self._tensors(entry.size, length, entry.diagonal))

        def with_tiles() -> Any:
            with torch.no_grad(), in_table({entry: tiles}):
                return call()

        return Subject(with_tiles, self.clock)

    def whole(
        self, name: str, entries: Mapping[Entry, Tiles], size: int, length: int, diagonal: bool, direction: Direction
    ) -> Subject:  # fmt: skip
        """A pass of an implementation; forward alone, or backward alone with what its forward pass kept."""
        attention = registry.find(name)[0].function
        leaves = [tensor.detach() for tensor in self._tensors(size, length, diagonal)[:3]]
        if direction == "forward":

            def forward() -> Any:
                with torch.no_grad(), in_table(entries):
                    return attention(*leaves, causal=diagonal)

            return Subject(forward, self.clock)
        upstream = self._tensors(size, length, diagonal)[3]
        leaves = [tensor.requires_grad_() for tensor in leaves]
        with in_table(entries):
            output = attention(*leaves, causal=diagonal)

        def backward() -> Any:
            with in_table(entries):
                return torch.autograd.grad(output, leaves, upstream, retain_graph=True)

        return Subject(backward, self.clock)

    @cache  # noqa: B019 - there is one for the whole process
    def _problem(self, size: int, diagonal: bool) -> Any:
        case = Workload(
            name="check", source="made for this", heads=2, key_size=size, queries=CHECKED, causal=diagonal
        )  # fmt: skip
        return case.problem("bfloat16")

    @cache  # noqa: B019
    def _tensors(self, size: int, length: int, diagonal: bool) -> tuple[Any, ...]:
        """query, key, value, upstream, and what the backward kernels are given of the forward pass."""
        s = case_of(size, length, diagonal=diagonal).sizes
        generator = torch.Generator(self._device).manual_seed(0)
        query, key, value, upstream = (
            torch.randn(
                s["B"], s["H"], s["Q"], size, generator=generator, device=self._device, dtype=torch.bfloat16
            )
            for _ in range(4)
        )
        output = triton_flash.attention(query.detach().requires_grad_(), key, value, causal=diagonal)
        saved = output.grad_fn.saved_tensors
        return query, key, value, upstream, saved[4], autograd._delta(saved[3], upstream, None)


# -- What comes of it --------------------------------------------------------------------------------------------------


def chosen(entries: Sequence[Entry], rankings: Mapping[str, Ranking]) -> dict[Entry, Tiles]:
    """The best of each contest, or the present tiles where nothing is better by enough."""
    choices = {}
    for entry in entries:
        ranking, present = rankings.get(str(entry)), spelled(HOPPER[entry])
        choices[entry] = HOPPER[entry]
        if ranking is not None and ranking.seconds:
            best, seconds = next(iter(ranking.seconds.items()))
            if seconds < WORTH_A_CHANGE * ranking.seconds.get(present, math.inf):
                choices[entry] = read(best)
    return choices


def table(best: Mapping[Entry, Tiles]) -> str:
    """HOPPER as it stands in the source, with the best tiles."""
    lines = [
        f'    ("{part}", {size}, {diagonal}): Tiles({", ".join(str(n) for n in tiles if n is not None)}),'
        for (part, size, diagonal), tiles in {**HOPPER, **best}.items()
    ]
    return "\n".join(["HOPPER = {", *lines, "}"])


def comparison(session: Session, device: Any, best: Mapping[Entry, Tiles], sizes: Sequence[int]) -> list[str]:
    """A line for each case: TFLOP/s of the present tiles, of the best, of each back end, and best over best back end."""
    lines = [
        f"{'case':28}{'present':>9}{'best':>9}"
        + "".join(f"{name[11:]:>11}" for name in BACKENDS)
        + "   ratio"
    ]
    refusals: dict[str, None] = {}
    for direction, size, diagonal, length in product(DIRECTIONS, sizes, (False, True), LENGTHS):
        of_case = {entry: tiles for entry, tiles in best.items() if entry[1:] == (size, diagonal)}
        case = size, length, diagonal, direction
        ours = {"present": {}, "best": of_case}
        makers = {name: partial(device.whole, "triton_flash", tiles, *case) for name, tiles in ours.items()}
        makers |= {name: partial(device.whole, name, {}, *case) for name in BACKENDS}
        which = " ".join(f"{spelled(HOPPER[entry])}:{spelled(tiles)}" for entry, tiles in of_case.items())
        times = session.timed(("compared", *case, which), makers, COMPARED_ROUNDS)
        name = f"{direction} {size} {'causal' if diagonal else 'full'} {length}"
        if times is None:
            return [*lines, f"{name}: the time was up; run it again, and it goes on from here"]
        flops = work(case_of(size, length, diagonal=diagonal).outline("bfloat16"), direction).flops
        speeds = {n: flops / median(t) / 1e12 for n, t in times.items() if not isinstance(t, str)}
        rival = max((speeds[n] for n in BACKENDS if n in speeds), default=math.nan)
        refusals |= {f"{n}: {t}": None for n, t in times.items() if isinstance(t, str)}
        cells = [f"{speeds[n]:.0f}" if n in speeds else "-" for n in times]
        widths = [9, 9, *(11 for _ in BACKENDS)]
        lines.append(
            f"{name:28}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            + f"{speeds.get('best', math.nan) / rival:8.2f}"
        )  # fmt: skip
    return [*lines, *refusals]


def about() -> dict[str, str]:
    """What the measurements of a journal hold for."""
    sources = sorted(Path(triton_flash.__file__).parent.glob("*.py"))
    kernels = "".join(path.read_text() for path in sources).replace(table({}), "")
    return {
        "device": torch.cuda.get_device_name(), "torch": str(torch.__version__), "triton": str(triton.__version__),
        "kernels": sha256(kernels.encode()).hexdigest()[:12],
    }  # fmt: skip


def tune(
    entries: Sequence[Entry], device: Any, journal: Journal, budget_seconds: float,
    compiling: Callable[..., dict[tuple[Entry, Tiles], Needs | str]] = compile_all,
    now: Callable[[], float] = time.monotonic,
) -> Session:  # fmt: skip
    """All of it, printed as it becomes known."""
    start = now()

    def left(share: float) -> float:
        return start + share * budget_seconds - now()

    wanted = sorted(
        ((entry, tiles) for entry in entries for tiles in candidates(entry)),
        key=lambda candidate: candidates(candidate[0]).index(
            candidate[1]
        ),  # the likely ones of every contest first
    )
    needs = compiling(wanted, journal, lambda: left(COMPILING))
    known = sum(isinstance(need, Needs) for need in needs.values())
    print(f"{now() - start:.0f} s: {known} of {len(wanted)} candidates compiled", flush=True)
    session = Session(journal, lambda: left(TUNING) > 0, device.healthy)
    contests = []
    for entry in entries:
        fit = []
        for tiles in candidates(entry):
            need = needs[entry, tiles]
            if isinstance(need, str):
                session.out[str(entry), spelled(tiles)] = need
            elif not need.programs(tiles.warps):
                session.out[str(entry), spelled(tiles)] = f"does not fit: {need}"
            else:
                fit.append(spelled(tiles))
        contest = Contest(str(entry), fit, LENGTHS)
        contests.append(session.admit(contest, lambda _, name, entry=entry: device.check(entry, read(name))))  # type: ignore[misc]
    admitted = sum(len(contest.candidates) for contest in contests)
    print(f"{now() - start:.0f} s: {admitted} of them checked and right", flush=True)
    by_name = {str(entry): entry for entry in entries}
    rankings = session.halve(
        contests, lambda contest, name, case: device.subject(by_name[contest.name], read(name), case)
    )
    print(f"{now() - start:.0f} s: timed", flush=True)
    for entry in entries:
        print(f"\n{entry}")
        ranking = rankings.get(str(entry))
        for name, seconds in () if ranking is None else ranking.seconds.items():
            mark = "  (present)" if name == spelled(HOPPER[entry]) else ""
            print(f"    {name:18} {1e3 * seconds:9.4f} ms   {needs[entry, read(name)]}{mark}")
        print("    not timed" if ranking is None else f"    after stage {ranking.stage + 1}")
    for (contest_name, name), reason in session.out.items():
        print(f"out: {contest_name} {name}: {reason}")
    best = chosen(entries, rankings)
    print(f"\n{table(best)}\n", flush=True)
    session.has_time = lambda: left(1.0) > 0
    print("\n".join(comparison(session, device, best, sorted({entry.size for entry in entries}))), flush=True)
    return session


def main() -> None:
    """Print the table HOPPER with the best tiles, and TFLOP/s beside those of torch's back ends."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--budget", type=float, default=360.0, help="seconds for everything")
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES, choices=SIZES, help="head sizes")
    options.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="kernels")
    options.add_argument(
        "--journal", type=Path, default=Path("build/tiles.jsonl"), help="what is known, kept"
    )
    options.add_argument("--compile", action="store_true", help="compile for sm_90 and say what each needs")
    arguments = options.parse_args()
    entries = [Entry(*fields) for fields in product(arguments.parts, arguments.sizes, (False, True))]
    if arguments.compile:
        wanted = [(entry, tiles) for entry in entries for tiles in candidates(entry)]
        journal = Journal(arguments.journal, {"compiled for": "sm_90", "triton": str(triton.__version__)})
        for (entry, tiles), need in compile_all(wanted, journal, lambda: math.inf).items():
            fit = (
                f"{need}, {need.programs(tiles.warps)} a multiprocessor" if isinstance(need, Needs) else need
            )
            print(f"{entry!s:20} {spelled(tiles):18} {fit}")
        return
    absent = triton_flash.unavailable("cuda")
    if absent is None and _shared_memory(torch.device("cuda")) < SHARED_MEMORY:
        absent = "the table is for GPUs with the shared memory of Hopper"
    if absent is not None:
        print(f"tiles: {absent} (--compile needs none)", file=sys.stderr)
        raise SystemExit(2)
    try:
        tune(entries, Device(), Journal(arguments.journal, about()), arguments.budget)
    except DeviceLost as lost:
        print(f"tiles: the device answers no more: {lost}", file=sys.stderr)
        print("Run it again: it goes on, without what was running when that happened.", file=sys.stderr)
        raise SystemExit(3) from lost


if __name__ == "__main__":
    main()
