"""Threads of other libraries sleep while laws are checked, unless the user says otherwise or times are measured."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qkverify.verification.idle_threads import ASLEEP, let_threads_sleep

PROGRAM = """
import os, sys
from qkverify.cli.main import main
early = "numpy" not in sys.modules
sys.argv[1:] = [sys.argv[1], "--help"]
try:
    main()
finally:
    print(os.environ.get("GOMP_SPINCOUNT"), early)
"""


def test_what_the_user_has_set_stays() -> None:
    waits, spins = {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}
    for environment in (waits, spins):
        let_threads_sleep(environment)
    assert waits == {"OMP_WAIT_POLICY": "active"}
    assert spins == {**ASLEEP, "GOMP_SPINCOUNT": "7"}


@pytest.mark.parametrize(("command", "said"), [("verify", "0"), ("replay", "0"), ("bench", "None")])
def test_threads_sleep_in_commands_that_time_nothing(command: str, said: str) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in (*ASLEEP, "OMP_WAIT_POLICY")
    }
    program = [sys.executable, "-c", PROGRAM, command]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == f"{said} True"  # early enough for NumPy
