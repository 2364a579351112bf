"""The probes find what they are told to find: simulated units whose ways of rounding are known, then real ones."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest

from qkverify.contract import frameworks
from qkverify.probes import precision
from qkverify.probes.precision import STORAGES, ExpError, ProductRounding, departures, exp_error, probe, rows
from qkverify.results import Rounding
from qkverify.rounding import Precision

Array = np.ndarray
ROUND = {"nearest": np.rint, "toward zero": np.trunc, "down": np.floor, "up": np.ceil, "none": lambda x: x}


def rounded(x: Array, bits: int, how: str) -> Array:
    """To so many fraction bits; exponents have no limits here."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(ROUND[how](np.ldexp(fraction, bits + 1)), exponent - bits - 1)


@dataclasses.dataclass(frozen=True)
class Unit:
    """A matrix unit. Blocks of products are aligned to the largest term, the accumulator among them, and cut `guard` bits
    below the accumulator's last; `partial` sums take turns, and are added up at the end."""

    storage: str
    operand_bits: int | None = None
    operand_rounding: str = "none"
    bits: int = 23
    rounding: str = "nearest"
    block: int = 1
    guard: int = 0
    partial: int = 1
    flush_in: bool = False
    flush_out: bool = False

    def __call__(self, a: Array, b: Array) -> Array:
        a, b = self.taken(a), self.taken(b)
        sums = np.zeros((self.partial, a.shape[0], b.shape[1]))
        for step, start in enumerate(range(0, a.shape[1], self.block)):
            products = [np.outer(a[:, k], b[k]) for k in range(start, min(start + self.block, a.shape[1]))]
            sums[step % self.partial] = self.added(sums[step % self.partial], products)
        total = sums[0]
        for other in sums[1:]:
            total = self.added(total, [other])
        return self.given(total)

    def taken(self, x: Array) -> Array:
        if self.flush_in:
            x = np.where(np.abs(x) < 2.0 ** STORAGES[self.storage].least, 0.0, x)
        bits = STORAGES[self.storage].bits if self.operand_bits is None else self.operand_bits
        return rounded(x, bits, self.operand_rounding)

    def added(self, total: Array, products: list[Array]) -> Array:
        if self.block == 1:
            return rounded(total + products[0], self.bits, self.rounding)
        terms = np.stack([total, *products])
        largest = np.frexp(np.abs(terms).max(axis=0))[1] - 1
        step = np.ldexp(1.0, largest - self.bits - self.guard)
        aligned = np.trunc(terms / step) * step
        return rounded(aligned.sum(axis=0), self.bits, self.rounding)

    def given(self, x: Array) -> Array:
        x = x.astype(ml_dtypes.bfloat16 if self.storage == "bfloat16" else self.storage).astype(float)
        return np.where(np.abs(x) < 2.0 ** STORAGES[self.storage].least, 0.0, x) if self.flush_out else x


PLAIN = ProductRounding(23, "none", 23, "nearest", 1, True, True)
UNITS = {
    "float32 in order": (Unit("float32"), PLAIN),
    "float32 cut off": (Unit("float32", rounding="toward zero"), dataclasses.replace(PLAIN, accumulator_rounding="toward zero")),
    "float32 rounded down": (Unit("float32", rounding="down"), dataclasses.replace(PLAIN, accumulator_rounding="down")),
    "float32 rounded up": (Unit("float32", rounding="up"), dataclasses.replace(PLAIN, accumulator_rounding="up")),
    "float32 cut off, last product first": (
        lambda a, b: Unit("float32", rounding="toward zero")(a[:, ::-1], b[::-1]),
        dataclasses.replace(PLAIN, accumulator_rounding="toward zero", block=None),
    ),
    "float32 in four partial sums": (Unit("float32", partial=4), dataclasses.replace(PLAIN, block=None)),
    "tf32 rounded": (Unit("float32", 10, "nearest"), dataclasses.replace(PLAIN, operand_bits=10, operand_rounding="nearest")),
    "tf32 tensor core": (
        Unit("float32", 10, "toward zero", rounding="toward zero", block=4),
        ProductRounding(10, "toward zero", 23, "toward zero", 4, True, True),
    ),
    "bfloat16 tensor core, 8 at once": (
        Unit("bfloat16", rounding="toward zero", block=8, flush_in=True),
        ProductRounding(7, "none", 23, "toward zero", 8, False, True),
    ),
    "float16 tensor core, 16 at once, two guard bits": (
        Unit("float16", rounding="toward zero", block=16, guard=2),
        ProductRounding(10, "none", 23, "toward zero", 16, True, True),
    ),
    "float16 accumulated in float16": (Unit("float16", bits=10), ProductRounding(10, "none", 10, "nearest", 1, True, True)),
    "float16 with 13 bits, flushed": (
        Unit("float16", bits=13, rounding="toward zero", block=32, flush_in=True, flush_out=True),
        ProductRounding(10, "none", 13, "toward zero", 32, False, False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNITS)
def test_a_simulated_unit_is_told_by_its_answers(name: str) -> None:
    unit, known = UNITS[name]
    assert probe(unit, STORAGES[name.split()[0].replace("tf32", "float32")]) == known


def test_no_two_of_the_units_are_taken_for_each_other() -> None:
    known = [(name.split()[0], rounding) for name, (_, rounding) in UNITS.items()]
    assert all(left != right for left, right in itertools.combinations(known, 2))


@pytest.mark.parametrize(("units", "expected"), [(1, 1.0), (20, 20.0), (300, 300.0)])
def test_the_error_of_exp_is_found_in_unit_roundoffs(units: int, expected: float) -> None:
    def exp(x: Array) -> Array:
        return np.exp(x) * np.where(x > 50, 1 + units * 2.0**-24, 1.0)  # wrong in one part of the range

    assert exp_error(exp, STORAGES["float32"]).units == pytest.approx(expected, rel=1e-3)


def test_exp_by_a_rounded_logarithm_of_two_is_wrong_by_its_argument() -> None:
    """exp2(x log2 e) with x log2 e rounded to float32: half a unit of up to 128, times ln 2."""

    def exp(x: Array) -> Array:
        return np.exp2((x * np.log2(np.e)).astype(np.float32).astype(float))

    error = exp_error(exp, STORAGES["float32"])
    assert 20 < error.units <= 128 * np.log(2) + 1
    assert error.own < 1  # and the bounds count the argument's rounding by itself


def test_what_departs_from_the_declared_precision_is_said() -> None:
    plain = Precision.plain("float32")
    assert departures(PLAIN, ExpError(90.0, 2.0), plain) == []
    tensor_core = UNITS["tf32 tensor core"][1]
    assert departures(tensor_core, ExpError(25.0, 25.0), plain) == [
        "operands round by up to 2^-10, float32 allows 2^-24",
        "accumulator round by up to 2^-23, float32 allows 2^-24",
        "exp is wrong by 25 unit roundoffs beside its argument's, 20 are allowed",
    ]
    rounded_tf32 = dataclasses.replace(PLAIN, operand_bits=10, operand_rounding="nearest")
    assert departures(rounded_tf32, None, Precision.tf32()) == []
    half = Precision.fused("float16")
    assert departures(UNITS["float16 accumulated in float16"][1], None, half) == [
        "accumulator round by up to 2^-11, float32 allows 2^-24"
    ]
    flushed = dataclasses.replace(UNITS["float16 tensor core, 16 at once, two guard bits"][1], accumulator_rounding="nearest",
                                  subnormal_results=False)  # fmt: skip
    assert departures(flushed, None, half) == ["subnormal results become zero, float16 keeps them"]


def test_the_products_of_this_processor_keep_to_their_models() -> None:
    names = []
    for row in rows("cpu"):
        names.append(row.name)
        storage = STORAGES[row.name.split()[1]]
        assert row.product.operand_bits == storage.bits, row
        assert row.product.accumulator_bits >= 23, row
        assert row.exp is not None
        assert row.exp.units > 0.5, row  # no exp rounds better than to nearest
        assert row.departures == [], row
    assert names[:2] == ["numpy float64", "numpy float32"]


class FakeTorch:
    """A torch with one setting, which another version does not have."""

    def __init__(self) -> None:
        self.backends: Any = self
        self.cuda: Any = self
        self.matmul: Any = self
        self.allow_tf32 = False


def test_a_setting_is_as_it_was_afterwards_and_one_that_is_missing_is_left_out() -> None:
    torch = FakeTorch()

    def fail() -> None:
        with precision._set(torch, "backends.cuda.matmul.allow_tf32", True):
            assert torch.allow_tf32
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not torch.allow_tf32
    assert precision._has(torch, "backends.cuda.matmul.allow_tf32")
    assert not precision._has(torch, "backends.cuda.matmul.allow_fp16_accumulation")


def test_what_was_found_becomes_records_and_a_probe_that_fails_is_one_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one_row(device: str) -> Iterator[precision.AlignedRow]:
        yield precision.AlignedRow("a unit", PLAIN, ExpError(3.5, 2.5), ["it departs"])
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(precision, "rows", one_row)
    record, failed = precision.records("cuda")
    assert record == Rounding(
        "a unit", "cuda", 23, "none", 23, "nearest", 1, True, True, 3.5, 2.5, ["it departs"]
    )
    assert (failed.device, failed.reason) == ("cuda", "raised RuntimeError: no kernel image is available")
    assert json.loads(msgspec.json.encode(record))["type"] == "rounding"


INTERPRETED = """
from qkverify.probes.precision import triton_rows
for row in triton_rows("cpu"):
    if "bfloat16" not in row.name:  # the interpreter multiplies the bit patterns of bfloat16
        print(row.name, row.product.operand_bits, row.product.accumulator_bits >= 23, row.exp and row.exp.own < 20, sep="|")
"""


def test_the_kernels_of_the_triton_probes_run_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=300,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [
        "triton float32, ieee, exp|23|True|True",
        "triton float32, tf32, exp2|23|True|True",
        "triton float32, tf32x3|23|True|None",
        "triton float16|10|True|None",
    ]


@pytest.mark.cuda
def test_the_products_of_this_gpu_are_what_the_implementations_declare() -> None:
    """On CUDA: operands as stored (tf32 where allowed), sums of at least float32 unless float16 was asked for."""
    absent = frameworks.missing("torch") or frameworks.get("torch").unavailable("cuda")
    if absent:
        pytest.skip(absent)
    for row in rows("cuda"):
        print(row)
        storage = STORAGES[row.name.split()[1].rstrip(",")]
        is_tf32 = "allow_tf32 True" in row.name or row.name.split(", ")[1:2] == ["tf32"]
        if (
            "tf32x3" not in row.name
        ):  # three products of tf32 keep most of float32, and nobody promises how much
            assert row.product.operand_bits == (10 if is_tf32 else storage.bits), row
        if not row.name.endswith(("accumulation True", "reduction True")):  # asked for less than float32
            assert row.product.accumulator_bits >= 23, row
        assert row.exp is None or row.exp.own <= Precision.fused(storage.name).exp_ulps, row
