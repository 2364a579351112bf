"""What the laws cannot see of triton_flash: memory, which form of a kernel runs, tiles, machine code for a GPU not here."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
triton = pytest.importorskip("triton", reason="needs triton")

from qkverify import UnsupportedCase  # noqa: E402
from qkverify.implementations import triton_flash  # noqa: E402
from qkverify.implementations.triton_flash import (  # noqa: E402
    attention,
    autograd,
    launch,
    pieces,
    tiles,
)

EDGE = tiles.INTERPRETED.queries
NAN = float("nan")


def tensors(
    *, B: int = 1, H: int = 2, G: int = 1, Q: int = EDGE + 3, K: int = 2 * EDGE + 5, D: int = 5, E: int = 3,
    dtype: Any = torch.float32,
) -> list[Any]:  # fmt: skip
    """query, key, value, upstream: more than one tile of each axis."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, H, Q, D), (B, G, K, D), (B, G, K, E), (B, H, Q, E))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def results(query: Any, key: Any, value: Any, upstream: Any, **options: Any) -> list[Any]:
    """Output and gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    output = attention(*leaves, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def equal(got: list[Any], expected: list[Any]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(got, expected, strict=True))


# -- Memory ------------------------------------------------------------------------------------------------------------


def spread(tensor: Any, layout: str) -> Any:
    """The same numbers in other places."""
    if layout == "last axes swapped":
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "heads inside":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    room = torch.full([2 * size + 1 for size in tensor.shape], NAN, dtype=tensor.dtype)
    room[1::2, 1::2, 1::2, 1::2] = tensor
    return room[1::2, 1::2, 1::2, 1::2]


@pytest.mark.parametrize("layout", ["last axes swapped", "heads inside", "every second"])
def test_strides_are_followed_and_nothing_is_copied(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors(B=2)
    expected = results(*inputs, causal=True)
    elsewhere = [spread(tensor, layout) for tensor in inputs]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an input was copied")

    for method in ("contiguous", "clone", "reshape"):
        monkeypatch.setattr(torch.Tensor, method, refuse)
    assert equal(results(*elsewhere, causal=True), expected)


def test_an_expanded_upstream_gradient_is_read_through_its_strides() -> None:
    query, key, value, upstream = tensors()
    half = torch.tensor(0.5)
    expected = results(query, key, value, torch.full_like(upstream, 0.5))
    assert equal(results(query, key, value, half.expand(upstream.shape)), expected)


@pytest.mark.parametrize("axis", [1, 2])
def test_offsets_reach_beyond_32_bits(axis: int, tmp_path: Path) -> None:
    """Keys and values stand 2**31 numbers apart in a file with holes, of which only the pages in use exist."""
    query, key, value, upstream = tensors(H=2, G=2, K=9, dtype=torch.float16)
    expected = results(query, key, value, upstream)
    apart = 2**31 // (key.shape[axis] - 1) + 8  # from the first to the last: more than 32 bits count
    numbers = apart * (key.shape[axis] - 1) + 2 * key[0].numel() * (1 + (axis == 2))
    far = []
    for index, tensor in enumerate((key, value)):
        room = torch.from_file(str(tmp_path / str(index)), shared=True, size=numbers, dtype=torch.float16)
        strides = list(tensor.stride())
        strides[axis] = apart
        if axis == 2:
            strides[1] = tensor.shape[-1]
        far.append(room.as_strided(tensor.shape, strides).copy_(tensor))
    assert equal(results(query, *far, upstream), expected)


@pytest.mark.parametrize(
    ("shape", "strides", "unit"),
    [
        ((2, 2, 9, 64), (2048, 1024, 64, 1), 8),
        ((2, 2, 9, 64), (2048, 1024, 65, 1), 1),  # rows are not aligned
        ((2, 2, 9, 64), (2048, 1024, 1, 16), 1),  # the last axis is not contiguous
        ((1, 1, 9, 64), (3, 5, 64, 1), 8),  # strides of axes of one entry mean nothing
        ((1, 1, 2, 64), (0, 0, 2**24, 1), 1),  # 32 bits would not reach through a tile
    ],
)
def test_units_say_what_is_aligned(shape: tuple[int, ...], strides: tuple[int, ...], unit: int) -> None:
    unit_found, steps = launch._strides(torch.empty(2**25, dtype=torch.float16).as_strided(shape, strides))
    assert unit_found == unit
    assert all(
        step * unit == stride
        for size, step, stride in zip(shape[:3], steps, strides, strict=False)
        if size > 1
    )


# -- Tiles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("below", "above"), [*itertools.product([None, -3, -1, 0, 2, 5], repeat=2)])
def test_tiles_are_found_as_by_counting(below: int | None, above: int | None) -> None:
    """Against all pairs: no partner outside [begin, end), and nothing but partners inside the inner tiles."""
    block = 4
    for first, count, limit in itertools.product(range(-9, 9, 2), (1, 4), (0, 1, 7, 12)):
        begin, inner_begin, inner_end, end = pieces._partners.fn(
            first,
            first + count - 1,
            below or 0,
            above or 0,
            limit,
            below is not None,
            above is not None,
            block,
        )
        partners = [
            {
                other
                for other in range(limit)
                if (below is None or other >= position - below)
                and (above is None or other <= position + above)
            }
            for position in range(first, first + count)
        ]
        assert set().union(*partners) <= set(range(begin, end))
        assert set(range(inner_begin, inner_end)) <= set.intersection(*partners)
        assert begin % block == inner_begin % block == inner_end % block == 0
        visited = [
            start
            for part in range(3)
            for start in range(*pieces._part.fn((begin, inner_begin, inner_end, end), part), block)
        ]
        assert visited == list(range(begin, end, block))


# -- NaN where it belongs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_other_rows_of_a_tile_see_does_not_touch_a_row(bad: float, dtype: Any) -> None:
    """The last query's own keys and values are poisoned; every other row must come out bit for bit as before."""
    query, key, value, upstream = tensors(Q=EDGE, K=EDGE, dtype=dtype)
    upstream[:, :, -1] = 0
    clean = results(query, key, value, upstream, causal=True)
    key[:, :, -1], value[:, :, -1] = bad, bad
    output, d_query, *_ = results(query, key, value, upstream, causal=True)
    assert torch.equal(output[:, :, :-1], clean[0][:, :, :-1])
    assert torch.equal(d_query[:, :, :-1], clean[1][:, :, :-1])
    assert output[:, :, -1].isnan().all()


def test_nan_in_a_value_reaches_its_column_of_the_rows_that_see_it() -> None:
    query, key, value, _ = tensors(Q=EDGE, K=EDGE)
    value[0, 0, 7, 1] = NAN
    expected = torch.zeros(EDGE, value.shape[-1], dtype=torch.bool)
    expected[7:, 1] = True
    assert torch.equal(attention(query, key, value, causal=True).isnan(), expected.expand(1, 2, -1, -1))


def test_nan_in_a_query_or_its_upstream_gradient_reaches_the_keys_that_it_sees() -> None:
    for poisoned in (0, 3):
        inputs = tensors(Q=EDGE, K=EDGE)
        inputs[poisoned][:, :, 7] = NAN
        *_, d_key, d_value = results(*inputs, causal=True)
        assert all(
            gradient[:, :, :8].isnan().all() and gradient[:, :, 8:].isfinite().all()
            for gradient in (d_key, d_value)
        )


# -- Which form runs ---------------------------------------------------------------------------------------------------

IMPORT_ORDER = """
import triton, triton.language as tl, torch
assert not triton.knobs.runtime.interpret
from qkverify.implementations.triton_flash import attention
from qkverify.implementations.triton_flash.forward import forward_kernel
one = torch.ones(1, 1, 3, 2)
assert torch.equal(attention(one, one, one), one)
assert isinstance(forward_kernel, triton.JITFunction) and not triton.knobs.runtime.interpret
"""


def test_the_interpreter_needs_no_environment_and_no_order_of_imports() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", IMPORT_ORDER], check=True, env=environment, timeout=120)


def test_a_cpu_is_always_available_and_a_gpu_where_there_is_one() -> None:
    assert triton_flash.unavailable("cpu") is None
    if not torch.cuda.is_available():
        assert triton_flash.unavailable("cuda") == "no CUDA device"


def compiled(
    monkeypatch: pytest.MonkeyPatch, *, D: int, E: int, dtype: Any, **options: Any
) -> dict[str, Any]:
    """Each kernel's machine code for compute capability 9.0, from the arguments that a call on a GPU would launch it with."""
    binaries: dict[str, Any] = {}

    def compile_instead(kernel: Any, grid: Any, tile: Any, arguments: tuple[Any, ...], **flags: Any) -> None:
        values = dict(zip(kernel.arg_names, arguments, strict=False)) | flags
        source = triton.compiler.ASTSource(
            fn=kernel,
            signature={
                name: described(values[name]) if name not in flags else "constexpr"
                for name in kernel.arg_names
            },
            constexprs={
                (kernel.arg_names.index(n),): v for n, v in values.items() if n in flags or v is None
            },
            attrs={
                (kernel.arg_names.index(n),): [["tt.divisibility", 16]]
                for n, v in values.items()
                if torch.is_tensor(v)
            },
        )
        target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        options = launch.launch_options(tile)
        binaries[kernel.fn.__name__] = triton.compile(source, target=target, options=options)

    monkeypatch.setattr(autograd, "_launch", compile_instead)
    monkeypatch.setattr(autograd, "_padded", lambda size, _: max(64, triton.next_power_of_2(size)))
    monkeypatch.setattr(
        autograd,
        "_tiles",
        lambda part, query, flags, unit: tiles.compiled_tiles(
            part, query.element_size(), flags["BLOCK_D"], unit > 1, flags["RIGHT"]
        ),
    )
    results(*tensors(Q=200, K=200, D=D, E=E, dtype=dtype), **options)
    return binaries


def described(value: Any) -> Any:
    """A run-time argument in the notation of Triton's signatures."""
    if value is None:
        return "constexpr"
    if isinstance(value, tuple):
        return tuple(described(part) for part in value)
    if torch.is_tensor(value):
        return (
            "*"
            + {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int32": "i32"}[str(value.dtype)[6:]]
        )
    return "fp32" if isinstance(value, float) else "i32"


KERNELS = {"forward_kernel", "delta_kernel", "query_gradient_kernel", "key_value_gradient_kernel"}


def test_kernels_compile_for_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    binaries = compiled(monkeypatch, D=5, E=3, dtype=torch.float16)
    assert binaries.keys() == KERNELS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "dtype", "options"),
    [
        (64, torch.bfloat16, {"causal": True}),
        (128, torch.bfloat16, {"causal": True}),
        (128, torch.bfloat16, {}),
        (
            64,
            torch.float32,
            {"window": (7, None), "softcap": 3.0, "key_lengths": torch.tensor([9], dtype=torch.int32)},
        ),
    ],
    ids=["bfloat16-64", "bfloat16-128", "bfloat16-128-full", "float32-64"],
)
def test_machine_code_fits_a_hopper_gpu(
    sizes: int, dtype: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    binaries = compiled(monkeypatch, D=sizes, E=sizes, dtype=dtype, **options)
    assert binaries.keys() == KERNELS
    for name, binary in binaries.items():
        assert binary.metadata.shared <= tiles.SHARED_MEMORY, name
        if dtype is torch.bfloat16 and name != "delta_kernel":
            assert "wgmma.mma_async" in binary.asm["ptx"], f"{name}: no tensor core product"
            assert "cp.async.cg.shared.global" in binary.asm["ptx"], f"{name}: no 16-byte copies"


# -- Refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"D": 257}, UnsupportedCase, "D = 257"),
        ({"E": 257}, UnsupportedCase, "E = 257"),
        ({"dtype": torch.float64}, UnsupportedCase, "float64"),
        ({"H": 3, "G": 2}, ValueError, "3 query heads cannot share 2"),
    ],
)
def test_what_is_not_offered_is_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        attention(*tensors(**change)[:3])


def test_sizes_that_do_not_fit_are_refused() -> None:
    query, key, value, _ = tensors()
    for wrong in ((query[0], key, value), (query, key[..., 1:], value), (query, key, value[:, :, 1:])):
        with pytest.raises(ValueError, match=r"4 axes|do not fit"):
            attention(*wrong)
    with pytest.raises(ValueError, match="key_lengths"):
        attention(query, key, value, key_lengths=torch.ones(7, dtype=torch.int32))
