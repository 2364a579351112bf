"""How threads of other libraries wait for their next loop while laws are checked: asleep.

Threads of GNU's OpenMP, which torch has, and of OpenBLAS, which NumPy has, spin until the next loop comes. The problems of laws
are so small that spinning is most of what a check costs: 69 s of processor time in place of 29 s for a function in torch at
profile quick, on two cores. Nothing is computed otherwise. Where times are measured they spin as they do for everybody.
"""

from __future__ import annotations

from collections.abc import MutableMapping

ASLEEP = {"GOMP_SPINCOUNT": "0", "OPENBLAS_THREAD_TIMEOUT": "4"}
SAID_BY_THE_USER = ("OMP_WAIT_POLICY",)


def let_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """To be called before NumPy and torch are imported, which read it then. What the user has set stays."""
    if not any(name in environment for name in SAID_BY_THE_USER):
        for name, value in ASLEEP.items():
            environment.setdefault(name, value)
