"""Parameters that vary a number of an operation's definition: the definition's is passed, and what is wrong stays wrong."""

from __future__ import annotations

import pytest

from qkverify.contract import Implementation
from qkverify.verification.checking import verify

from .written import found_in_a_file

HEAD = """
import numpy as np

def turned(x, angles, size):
    size = x.shape[-1] if size is None else size
    first, second, rest = x[..., : size // 2], x[..., size // 2 : size], x[..., size:]
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], -1)

def angles(positions, size, theta):
    return np.asarray(positions)[:, None] * float(theta) ** (-np.arange(0, size, 2) / size)
"""
LLAMA = """
def turn(x, positions, theta=500000.0, rotary_dim=None):
    return turned(x, angles(positions, rotary_dim or x.shape[-1], theta), rotary_dim)
"""
REQUIRED = LLAMA.replace("theta=500000.0, rotary_dim=None", "rotary_dim, Base=10000").replace(
    "theta)", "Base)"
)
SIN_FIRST = LLAMA.replace("return turned(x, ", "return turned(x, 0.5 * ")
TABLES = """
def turn(x, cos, sin, rotary_dim=4):
    first, second, rest = (x[..., : rotary_dim // 2], x[..., rotary_dim // 2 : rotary_dim], x[..., rotary_dim:])
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], -1)
"""


def held(implementation: Implementation, law: str = "rotary_agrees_with_formula") -> bool:
    verification = verify(implementation, dtypes=("float64",), profile="glance", laws=(law,))
    assert verification.verdicts
    return not verification.failures


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        (LLAMA, {"theta": "10000.0"}),
        (REQUIRED, {"rotary_dim": "the size of x"}),
        (TABLES, {"rotary_dim": "the size of x"}),
    ],
)
def test_what_the_definition_says_is_passed_and_told(tmp_path, text: str, constants: dict[str, str]) -> None:
    implementation = found_in_a_file(tmp_path, HEAD, text, "turn")
    assert {name: str(value) for name, value in implementation.constants.items()} == constants
    for name, value in constants.items():
        assert (
            f"{name}={value} is passed, as in the definition of rotary: other values are not verified"
            in implementation.remarks
        )
    assert implementation.unknown == ()
    assert held(implementation)


def test_half_of_every_angle_is_still_wrong(tmp_path) -> None:
    assert not held(found_in_a_file(tmp_path, HEAD, SIN_FIRST, "turn"))


def test_a_gradient_that_takes_no_such_parameter_is_called_without_it(tmp_path) -> None:
    vjp = "\ndef turn_vjp(x, positions, upstream): return [turned(upstream, -angles(positions, x.shape[-1], 1e4), None)]\n"
    implementation = found_in_a_file(tmp_path, HEAD, LLAMA + vjp, "turn")
    assert "gradients" in implementation.offers
    assert held(implementation, "rotary_gradient_turns_back")


def test_a_softmax_is_taken_along_the_last_axis_whatever_its_default(tmp_path) -> None:
    """torch's own takes the first of three axes where it is not told."""
    text = """
import numpy as np

def softmax(x, dim=None, _level=3):
    dim = 0 if dim is None else dim
    e = np.exp(x - np.max(x, axis=dim, keepdims=True))
    return e / np.sum(e, axis=dim, keepdims=True)
"""
    implementation = found_in_a_file(tmp_path, text, "", "softmax")
    assert implementation.constants == {"dim": -1}
    assert implementation.unknown == ()
    assert (
        "dim=-1 is passed, as in the definition of softmax: other values are not verified"
        in implementation.remarks
    )
    verify(implementation, dtypes=("float64",), profile="glance").raise_for_failures(strict=True)
