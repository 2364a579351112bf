"""The first call: what does not fit is found out and said in one sentence, or the run stops with one."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from qkverify import probes
from qkverify.contract.registry import TargetImportError
from qkverify.errors import NothingVerified, UsageError
from qkverify.verification.checking import plan, verify

TORCH = "import torch\n\n"
NUMPY = "import numpy as np\n\n"
NUMPY_ATTENTION = """
def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)

"""


@pytest.fixture
def fitted(tmp_path, monkeypatch):
    """The one target of a file, with what its first calls show."""
    monkeypatch.chdir(tmp_path)

    def of(text, name="attention", file="mine.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(textwrap.dedent(text))
        (implementation,) = probes.find(f"{tmp_path / file}:{name}")
        return implementation

    return of


def holds(implementation, dtype="float32"):
    return not verify(implementation, dtypes=(dtype,), profile="glance").failures


def test_a_default_of_true_is_passed_false_where_a_problem_is_not_causal(fitted):
    implementation = fitted(
        TORCH
        + """
def attention(q, k, v, causal=True):
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.softmax(scores, -1) @ v
"""
    )
    assert implementation.neutral == {"causal": False}
    assert (
        "causal=False is passed if a problem does not use causal, because its default is True"
        in implementation.remarks
    )
    assert implementation.keywords({}) == {"causal": False}
    assert implementation.keywords({"causal": True}) == {"causal": True}
    assert holds(implementation)


def test_a_scale_of_one_is_passed_the_standard_scale(fitted):
    implementation = fitted(
        NUMPY
        + NUMPY_ATTENTION
        + """
def attention(q, k, v, scale=1.0):
    return softmax(q @ k.swapaxes(-1, -2) * scale) @ v
"""
    )
    assert implementation.keywords({}, size=16) == {"scale": 0.25}
    assert holds(implementation)


def test_a_cap_is_switched_off_by_the_value_that_does_so(fitted):
    implementation = fitted(
        NUMPY
        + NUMPY_ATTENTION
        + """
def attention(q, k, v, softcap=50.0):
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    if softcap > 0:
        scores = softcap * np.tanh(scores / softcap)
    return softmax(scores) @ v
"""
    )
    assert implementation.neutral == {"softcap": 0.0}


def test_a_required_mask_is_passed_none(fitted):
    implementation = fitted(
        NUMPY
        + NUMPY_ATTENTION
        + """
def attention(q, k, v, mask):
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    return softmax(scores if mask is None else np.where(mask, scores, -1e9)) @ v
"""
    )
    assert implementation.neutral == {"mask": None}
    assert holds(implementation)


@pytest.mark.parametrize(("result", "returns"), [
    ("output, weights", 0), ("weights, output", 1), ("[output, weights]", 0),
    ("{'weights': weights, 'output': output}", "output"),
])  # fmt: skip
def test_of_several_results_the_output_is_found_by_its_shape(fitted, result, returns):
    implementation = fitted(
        TORCH
        + f"""
def attention(q, k, v):
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
    output = weights @ v
    return {result}
"""
    )
    assert implementation.returns == returns
    assert "is the output and is verified; the rest is not" in implementation.remarks[0]
    assert holds(implementation)


def test_a_declared_part_is_taken_and_an_undeclared_one_is_asked_for(fitted):
    text = (
        TORCH
        + """
from qkverify import implementation

@implementation({})
def attention(query, key, value):
    return query.mean(), torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, -1) @ value
"""
    )
    declared = 'requires="G == H", arrays="torch"'
    implementation = fitted(text.format(f"{declared}, returns=1"), file="said.py")
    assert (implementation.returns, implementation.remarks) == (1, ())
    assert holds(implementation)
    with pytest.raises(UsageError, match=r"declare @implementation\(returns=1\)"):
        fitted(text.format(declared), file="unsaid.py")


def test_an_adapter_of_its_own_package_is_called_with_the_arrays_that_it_takes(fitted, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "kernels_of_mine.py").write_text(TORCH + """
def run(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1) @ v
""")  # fmt: skip
    implementation = fitted("""
import kernels_of_mine

def attention(query, key, value):
    return kernels_of_mine.run(query, key, value)
""")
    assert (implementation.arrays, "gradients" in implementation.offers) == ("torch", True)
    del sys.modules["kernels_of_mine"]


def test_what_no_name_shows_is_found_out_by_calling(fitted):
    implementation = fitted("""
import importlib

def attention(query, key, value):
    softmax = getattr(importlib.import_module("tor" + "ch"), "softmax")
    return softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, -1) @ value
""")
    assert implementation.arrays == "torch"
    assert "takes torch arrays, as a first call showed" in implementation.remarks


@pytest.mark.parametrize(("body", "layout"), [
    ("np.einsum('bhqk,bkhd->bqhd', softmax(np.einsum('bqhd,bkhd->bhqk', q, k) * q.shape[-1] ** -0.5), v)", "BLHD"),
    ("softmax(q @ k.transpose(0, 2, 1) * q.shape[-1] ** -0.5) @ v", "BLD"),
    ("softmax(q @ k.T * q.shape[-1] ** -0.5) @ v", "LD"),
])  # fmt: skip
def test_the_axes_are_found_out_by_the_shape_of_the_output(fitted, body, layout):
    implementation = fitted(
        NUMPY
        + NUMPY_ATTENTION
        + f"""
def attention(q, k, v):
    return {body}
"""
    )
    assert implementation.layout == layout
    assert implementation.remarks[0].startswith("arrays are (")
    assert holds(implementation)


def test_a_wider_result_is_judged_and_said(fitted):
    implementation = fitted(
        NUMPY
        + NUMPY_ATTENTION
        + """
def attention(q, k, v):
    return softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) @ v
"""
    )
    assert implementation.result_dtypes == {"float32": "float64"}
    assert "returns float64 for float32 input" in " ".join(implementation.remarks)
    assert holds(implementation)


def test_a_result_of_fewer_digits_is_no_convention(fitted):
    implementation = fitted(
        TORCH
        + """
def attention(q, k, v):
    return (torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1) @ v).half()
"""
    )
    assert "float32" in implementation.dtypes
    assert not holds(implementation)


def test_a_dtype_that_the_plain_call_refuses_is_dropped_and_said(fitted):
    implementation = fitted(
        TORCH
        + """
def attention(q, k, v):
    if q.dtype == torch.float64:
        raise TypeError("no double precision")
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1) @ v
"""
    )
    assert implementation.dtypes == ("float32", "float16", "bfloat16")
    assert (
        "float64 is refused, so it is not verified: TypeError: no double precision" in implementation.remarks
    )


FLOAT32_INSIDE = """
def attention(q, k, v, *, scale=None):
    s = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.softmax(s, -1, dtype=torch.float32).to(q.dtype) @ v
"""


def test_double_precision_that_is_computed_in_float32_is_not_verified(fitted):
    implementation = fitted(TORCH + FLOAT32_INSIDE)
    assert implementation.dtypes == ("float32", "float16", "bfloat16")
    assert "float64 is not verified: its result is as exact as float32, and no more" in implementation.remarks


def test_double_precision_that_is_slightly_wrong_is_verified(fitted):
    wrong = FLOAT32_INSIDE.replace(", dtype=torch.float32", "").replace("@ v", "@ v * 1.000001")
    assert "float64" in fitted(TORCH + wrong).dtypes


@pytest.mark.parametrize(("body", "said"), [
    ("return missing_name", "raises an error on the plainest call: NameError: name 'missing_name' is not defined"),
    ("return q.sum()", "expected an array of numpy of shape"),
    ("return None", "returns a NoneType"),
])  # fmt: skip
def test_what_cannot_be_called_stops_the_run_with_the_call(fitted, body, said):
    with pytest.raises(UsageError) as stopped:
        fitted(f"{NUMPY}def attention(q, k, v):\n    {body}\n")
    assert said in str(stopped.value)
    assert "attention(query, key, value)" in str(stopped.value)


def test_a_missing_argument_is_named_with_the_remedy(fitted):
    with pytest.raises(
        UsageError, match="its parameter 'rank' has no default and is not an option"
    ) as stopped:
        fitted("def attention(q, k, v, rank):\n    return q\n")
    assert "def attention(query, key, value): return attention(query, key, value, rank=...)" in str(
        stopped.value
    )


def test_a_declared_implementation_that_always_raises_is_unavailable(fitted):
    implementation = fitted("""
from qkverify import implementation

@implementation(requires="G == H")
def attention(query, key, value):
    raise RuntimeError("never works")
""")
    planned = plan([implementation])
    assert planned.cells == []
    (reason,) = planned.unavailable.values()
    assert reason.startswith("it raises an error on the plainest call: RuntimeError: never works (mine.py:")


@pytest.mark.parametrize(
    "import_", ["from .numbers_of_mine import SCALE", "from kernels_package.numbers_of_mine import SCALE"]
)
def test_a_file_of_a_package_is_imported_as_part_of_it(fitted, tmp_path, monkeypatch, import_):
    monkeypatch.setattr(sys, "path", list(sys.path))
    package = tmp_path / "src" / "kernels_package"
    package.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    (package / "__init__.py").write_text("")
    (package / "numbers_of_mine.py").write_text("SCALE = -0.5\n")
    implementation = fitted(NUMPY + import_ + NUMPY_ATTENTION + """
def attention(q, k, v):
    return softmax(q @ k.swapaxes(-1, -2) * q.shape[-1] ** SCALE) @ v
""", file="src/kernels_package/attn.py")  # fmt: skip
    assert implementation.function.__module__ == "kernels_package.attn"
    for name in [name for name in sys.modules if name.startswith("kernels_package")]:
        del sys.modules[name]


def test_an_import_that_fails_says_where_it_was_looked_up(fitted, tmp_path):
    with pytest.raises(TargetImportError, match="imports were looked up from") as stopped:
        fitted("import no_such_module_of_mine\n")
    assert str(tmp_path) in str(stopped.value)
    assert "pip install -e ." in str(stopped.value)


def test_a_dropout_that_is_a_module_is_not_verified(fitted):
    implementation = fitted(TORCH + """
def attention(query, key, value, dropout=None):
    weights = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, -1)
    return (weights if dropout is None else dropout(weights)) @ value
""")  # fmt: skip
    assert "dropout" not in implementation.offers
    assert (
        "dropout does not accept a rate, so it is not verified: TypeError: 'float' object is not callable"
        in implementation.remarks
    )


def test_a_decorator_that_names_no_parameters_is_looked_through(fitted):
    implementation = fitted(TORCH + """
def counted(function):
    def inner(*args, **kwargs):
        inner.calls += 1
        return function(*args, **kwargs)
    inner.calls = 0
    return inner

@counted
def attention(q, k, v, *, scale=None):
    return torch.softmax(q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale), -1) @ v
""")  # fmt: skip
    assert implementation.offers == {"scale", "gradients"}
    assert holds(implementation)


def test_a_kernel_of_half_precision_alone_is_called_in_half_precision(fitted):
    implementation = fitted(TORCH + """
def attention(q, k, v):
    assert q.dtype != torch.float32 and q.dtype != torch.float64, "half precision only"
    scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    return (torch.softmax(scores, -1) @ v.float()).to(q.dtype)
""")  # fmt: skip
    assert implementation.dtypes == ("float16", "bfloat16")
    assert plan([implementation], dtypes=["float32"]).unavailable == {
        ("mine:attention", "cpu"): "float32 is refused: AssertionError: half precision only"
    }


def test_another_process_finds_the_same(fitted):
    implementation = fitted(TORCH + """
def attention(q, k, v, causal=True):
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    return torch.softmax(scores, -1) @ v, scores
""")  # fmt: skip
    of_process = (implementation.name, implementation.file, "attention")
    code = f"from qkverify import probes; one = probes.reload_implementation(*{of_process!r}); " \
           "print(one.requires, one.neutral, one.returns, one.layout, one.arrays, one.remarks)"  # fmt: skip
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    facts = (implementation.requires, implementation.neutral, implementation.returns, implementation.layout,
             implementation.arrays, implementation.remarks)  # fmt: skip
    assert said.strip() == " ".join(map(str, facts))


ONE_SIZE = """
import numpy as np

def attention(query, key, value):
    if query.shape[-1] != 32:
        raise ValueError("the size of a head is 32")
    weights = np.exp(query @ key.swapaxes(-1, -2) * query.dtype.type(32 ** -0.5))
    return weights / weights.sum(-1, keepdims=True) @ value
"""


def test_sizes_that_are_said_are_the_ones_that_are_tried(tmp_path):
    (tmp_path / "one_size.py").write_text(ONE_SIZE)
    target = f"{tmp_path / 'one_size.py'}:attention --requires"
    (implementation,) = probes.find(f"{target} 'D == 32' --requires 'E == 32'")
    assert implementation.requires[:2] == ("D == 32", "E == 32")
    assert "G == H or G == 1" in implementation.requires
    with pytest.raises(NothingVerified, match="none of the sizes that are tried keeps D == 33"):
        probes.find(f"{target} 'D == 33'")
