"""A function that ends its process on the first call does not end the judge's."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from qkverify.probes import survival
from qkverify.verification import checking

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the first call is made in a fork"),
    pytest.mark.filterwarnings("ignore:os.fork"),  # JAX's, where another test of this process has loaded it
]


@pytest.fixture(autouse=True)
def safe(monkeypatch):
    """Another test of this process may have loaded JAX, whose threads these calls do not meet."""
    monkeypatch.setattr(survival.forking, "is_safe", lambda: True)


KERNELS = """
import os
import numpy as np
from qkverify import implementation

@implementation(name="{name}", dtypes=("float32",))
def attention(query, key, value):
    {body}
"""


def test_a_call_that_comes_back_or_raises_is_no_death():
    def raises() -> None:
        raise ValueError("no")

    assert survival.death_of(lambda: None) == ""
    assert survival.death_of(raises) == ""
    assert survival.death_of(lambda: sys.exit(3)) == ""  # an exception too: who calls it here meets it again


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: os._exit(0), "ended with exit code 0"),
        (lambda: os._exit(3), "ended with exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was killed by SIGSEGV"),
    ],
)
def test_a_death_is_told(call, words):
    assert survival.death_of(call) == words


def test_of_a_call_that_hangs_nothing_is_known(monkeypatch):
    monkeypatch.setattr(survival, "LONGEST", 0.2)
    assert survival.death_of(lambda: time.sleep(60)) == ""


@pytest.mark.parametrize("body", ["os._exit(0)", "os.abort()"])
def test_its_neighbour_is_verified(body, tmp_path):
    killer, right = tmp_path / "killer.py", tmp_path / "right.py"
    killer.write_text(KERNELS.format(name="killer", body=body))
    right.write_text(KERNELS.format(name="right", body="return np.zeros(3)"))
    planned = checking.plan([str(killer), str(right)])
    assert [cell.implementation.name for cell in planned.cells] == ["right"]
    assert "on the plainest call" in planned.unavailable["killer", "cpu"]
