"""Tiles that triton_flash may take on a Hopper GPU, and what the compiler makes of each: neither needs a GPU.

Candidates are what can be expected to fit the registers and the shared memory of a multiprocessor. They are compiled for
sm_90 as a call there would have them compiled, by processes side by side, into Triton's cache: where there is a GPU, the
calls find them there.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import product
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget

from qkverify.errors import raised
from qkverify.implementations.triton_flash import autograd
from qkverify.implementations.triton_flash.launch import launch_options
from qkverify.implementations.triton_flash.tiles import HOPPER, SHARED_MEMORY, Tiles
from qkverify.implementations.triton_flash.tuning.halving import Journal

PARTS = {"forward": "forward_kernel", "queries": "query_gradient_kernel", "keys": "key_value_gradient_kernel"}
SIZES = (64, 128)
LONGEST_WAIT_SECONDS = 24 * 3600.0  # the system's clocks know no endless wait
NOT_COMPILED = "the time was up before it was compiled"

# Of sm_90 (CUDA C++ Programming Guide, "Compute Capabilities"), for one multiprocessor.
REGISTERS, MULTIPROCESSOR_SHARED, RESERVED_SHARED, WARPS = 65536, 228 * 1024, 1024, 64
# Of a thread: numbers of accumulators and products beyond which loops were seen to spill, and registers for all else,
# with which loops under a limit were seen not to.
MOST_NUMBERS, FURTHER_REGISTERS = 192, 48


class Entry(NamedTuple):
    """A key of HOPPER."""

    part: str
    size: int
    diagonal: bool

    def __str__(self) -> str:
        return f"{self.part} {self.size} {'causal' if self.diagonal else 'full'}"


class Needs(NamedTuple):
    """What the compiler made of a candidate: registers of a thread (0: not known), bytes of memory that each thread uses for
    what it spills, bytes of shared memory."""

    registers: int
    spilled: int
    shared: int

    def programs(self, warps: int) -> int:
        """How many of them a multiprocessor holds."""
        of_a_warp = 32 * 8 * max(1, math.ceil(self.registers / 8))
        return min(
            REGISTERS // (of_a_warp * warps),
            MULTIPROCESSOR_SHARED // (self.shared + RESERVED_SHARED) if self.shared <= SHARED_MEMORY else 0,
            WARPS // warps,
        )


def spelled(tiles: Tiles) -> str:
    """128x64x4x3, and the limit of registers where there is one."""
    return "x".join(str(number) for number in tiles if number is not None)


def read(text: str) -> Tiles:
    return Tiles(*map(int, text.split("x")))


def tiles_in_shared(entry: Entry, tiles: Tiles) -> int:
    """Bytes: the tiles that stay for a whole program, and the copies of the two that move."""
    still, moving = (tiles.queries, tiles.keys) if entry.part != "keys" else (tiles.keys, tiles.queries)
    held = 1 if entry.part == "forward" else 2
    return 2 * entry.size * (held * still + 2 * tiles.stages * moving)


def candidates(entry: Entry) -> list[Tiles]:
    """The present tiles, and all that can be expected to fit registers and shared memory; the likely ones first.

    Two copies of a tile, which hide no load, are tried only where a multiprocessor then holds more programs, and four only
    for short tiles. Registers are limited where yet another program fits then: the compiler takes more than the loops need.
    """
    proposed = [HOPPER[entry]]
    outputs, products = {"forward": (1, 1), "queries": (1, 2), "keys": (2, 2)}[entry.part]

    def programs_of(tiles: Tiles) -> int:
        """Of a multiprocessor, as far as shared memory goes; four warp groups are as many as registers allow."""
        return min(Needs(1, 0, tiles_in_shared(entry, tiles)).programs(tiles.warps), 16 // tiles.warps)

    for stages, moving, still, warps in product((3, 2, 4), (64, 128, 32), (128, 64, 256), (8, 4)):
        numbers = still * (outputs * entry.size + products * moving) // (32 * warps)
        sides = (still, moving) if entry.part != "keys" else (moving, still)
        tiles = Tiles(*sides, warps, stages)
        programs = programs_of(tiles)
        if not programs or still < 16 * warps or numbers > MOST_NUMBERS:
            continue
        if (stages == 2 and programs == programs_of(tiles._replace(stages=3))) or (
            stages == 4 and moving > 32
        ):
            continue
        proposed.append(tiles)
        for share in (12 // warps, 16 // warps):  # programs, of which two warp groups or fewer need no limit
            limit = REGISTERS // (32 * warps * share) // 8 * 8
            if (
                share * warps > 8
                and stages < 4
                and share <= programs
                and numbers <= limit - FURTHER_REGISTERS
            ):
                proposed.append(tiles._replace(registers=limit))
    return list(dict.fromkeys(proposed))


def call_of(
    entry: Entry, query: Any, key: Any, value: Any, upstream: Any, lse: Any, delta: Any
) -> Callable[[], Any]:
    """One kernel by itself."""
    settings = autograd.Settings(entry.size**-0.5, None, 0 if entry.diagonal else None, None, False)
    if entry.part == "forward":
        return partial(autograd.FlashAttention.apply, query, key, value, None, settings)
    gradient = {"queries": autograd._query_gradient, "keys": autograd._key_value_gradient}[entry.part]
    return partial(gradient, query, key, value, upstream, lse, delta, None, settings)


class _NoDevice:
    """What Triton asks its driver for before it compiles."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_here(entry: Entry, tiles: Tiles, capability: int = 90) -> Needs:
    """Compile as a call would, for a GPU that need not be there: the process can launch nothing afterwards."""
    triton.runtime.driver.set_active(_NoDevice(GPUTarget("cuda", capability, 32)))
    binaries = []

    def keep(kernel: Any, grid: Any, tile: Tiles, arguments: tuple[Any, ...], **flags: Any) -> None:
        options = launch_options(tile)
        binaries.append(kernel.warmup(*arguments, grid=grid, **flags, **options))

    query, key, value, upstream = (torch.empty(1, 1, 128, entry.size, dtype=torch.bfloat16) for _ in range(4))
    lse, delta = (torch.empty(1, 1, 128) for _ in range(2))
    with patch.object(autograd, "_launch", keep), patch.object(autograd, "_tiles", lambda *_: tiles):
        call_of(entry, query, key, value, upstream, lse, delta)()
    (binary,) = binaries
    return needs_of(binary.asm["cubin"], int(binary.metadata.shared))


def needs_of(cubin: bytes, shared: int) -> Needs:
    """As cuobjdump says, Triton's own or the toolkit's; without one, the registers are not known."""
    try:
        tool = triton.knobs.nvidia.cuobjdump.path
    except RuntimeError:
        tool = shutil.which("cuobjdump")
    if tool is None:
        return Needs(0, 0, shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack = (int(re.findall(rf"{what}:(\d+)", said.stdout)[0]) for what in ("REG", "STACK"))
    return Needs(registers, stack, shared)


def processes() -> Executor:
    """One for each core. Forked, they would inherit a CUDA context that they cannot use."""
    return ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))


def compile_all(
    wanted: Sequence[tuple[Entry, Tiles]], journal: Journal, left: Callable[[], float],
    compiler: Callable[[Entry, Tiles], Needs] = compile_here, executor: Callable[[], Executor] = processes,
) -> dict[tuple[Entry, Tiles], Needs | str]:  # fmt: skip
    """What each needs, or why that is not known. Side by side, for as long as `left` says in seconds."""
    outcomes: dict[tuple[Entry, Tiles], Needs | str] = {}
    missing = []
    for pair in wanted:
        known = journal.get("compiled", str(pair[0]), spelled(pair[1]))
        if known is None:
            missing.append(pair)
        else:
            outcomes[pair] = known.get("reason") or Needs(*known["needs"])
    if not missing or left() <= 0:
        return outcomes | dict.fromkeys(missing, NOT_COMPILED)
    pool = executor()
    futures = {pool.submit(compiler, *pair): pair for pair in missing}
    try:
        for future in as_completed(futures, timeout=min(left(), LONGEST_WAIT_SECONDS)):
            pair = futures[future]
            try:
                outcomes[pair] = needs = future.result()
                journal.put("compiled", str(pair[0]), spelled(pair[1]), needs=needs)
            except BrokenProcessPool:
                outcomes[pair] = "a process that compiled died"
            except Exception as error:
                outcomes[pair] = raised(error)
                journal.put("compiled", str(pair[0]), spelled(pair[1]), reason=outcomes[pair])
    except TimeoutError:
        pass
    finally:
        running = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
    return dict.fromkeys(missing, NOT_COMPILED) | outcomes
