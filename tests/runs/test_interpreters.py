"""What runs in Triton's interpreter is not judged by calls in threads: the interpreter itself is made for one."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest

from qkverify.runs import triton_interpreter

pytest.importorskip("triton")
ALONE = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

KERNELS = """
import triton
import triton.language as tl

@triton.jit
def times(x, out, factor, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < count) * factor, mask=at < count)

tuned = triton.autotune([triton.Config({})], key=["count"])(times)
"""
ATTENTION = """
import torch
import kernels

class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor, out = factor, torch.empty_like(x)
        if x.numel():
            kernels.{kernel}[(-(-x.numel() // 64),)](x.contiguous(), out, factor, x.numel(), BLOCK=64)
        return out

    @staticmethod
    def backward(ctx, upstream):
        return upstream * ctx.factor, None

def attention(query, key, value, *, scale=None):
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.softmax(Scaled.apply(query.contiguous(), factor) @ key.transpose(-1, -2), -1).nan_to_num() @ value

def plain(query, key, value, *, scale=None):
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.softmax(query * factor @ key.transpose(-1, -2), -1).nan_to_num() @ value
"""


@pytest.mark.parametrize("kernel", ["times", "tuned"])
def test_a_kernel_of_the_interpreter_is_not_called_in_threads(tmp_path, kernel):
    (tmp_path / "kernels.py").write_text(KERNELS)
    (tmp_path / "mine.py").write_text(ATTENTION.replace("{kernel}", kernel))
    targets = (
        "--implementation",
        "mine.py:attention",
        "--implementation",
        "mine.py:plain",
        "--dtype",
        "float32",
    )
    laws = (
        "--pyargs",
        "qkverify.properties.test_contract",
        "-k",
        "threads",
        "--hypothesis-profile",
        "glance",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *laws, *targets],
        cwd=tmp_path, env={**ALONE, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert (
        f"SKIPPED [1] {triton_interpreter.REASON}" in done.stdout.replace("\n", " ")
        or triton_interpreter.REASON in done.stdout
    )
    assert "1 passed, 1 skipped" in done.stdout


def test_what_reaches_no_such_kernel_is_judged(monkeypatch):
    def helper():
        return 1

    class Layer:
        def __init__(self):
            self.made = [functools.partial(helper)]

        def forward(self, x):
            return helper()

    assert not triton_interpreter.interpreted(helper)
    assert not triton_interpreter.interpreted(Layer())
    monkeypatch.setitem(
        sys.modules, triton_interpreter.INTERPRETER, sys.modules.get(triton_interpreter.INTERPRETER) or Fake
    )
    assert not triton_interpreter.interpreted(Layer())


class Fake:
    class InterpretedFunction:
        pass


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, triton_interpreter.INTERPRETER, Fake)
    return Fake.InterpretedFunction()


def test_a_kernel_is_found_behind_whatever_calls_it(kernel):
    def launch():
        return kernel

    class Module:
        def __init__(self):
            self.layers = {"first": [launch]}

    class Function:
        @staticmethod
        def forward(x):
            return launch()

    def call(x):
        return Function.forward(x)

    @functools.wraps(call)
    def wrapped(*arguments):
        return call(*arguments)

    reaching = (
        launch,
        functools.partial(launch),
        Module(),
        Module().__init__,
        call,
        wrapped,
        lambda: lambda: launch(),
    )
    assert [triton_interpreter.interpreted(callable_) for callable_ in reaching] == [True] * len(reaching)
