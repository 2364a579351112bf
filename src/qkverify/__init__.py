"""qkverify: property-based verification and benchmarks for attention.

    from qkverify import implementation, verify

    @implementation(arrays="numpy", dtypes=("float32", "float64"))
    def attention(query, key, value, *, causal=False, scale=None): ...

    verify(attention).raise_for_failures()

Laws of one's own: `law`, `problems`, `assert_within_bound` and the other assertions. Bounds: `Bounded`, `Precision`.

The engine is in rooms, from the ground up: foreign_text, errors, units, rounding, results, contract, problem, runs, strategies,
probes, counterexamples, verification, timing, history, report, exports, cli. Each imports only those before it (`make lint`), and
its own docstring says what it hands out.

Importing this package loads neither NumPy nor any array framework: names are resolved when they are first used.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qkverify.contract import Finding as Finding
    from qkverify.contract import Implementation as Implementation
    from qkverify.contract import implementation as implementation
    from qkverify.contract.modules import module as module
    from qkverify.errors import ContractError as ContractError
    from qkverify.errors import HarnessError as HarnessError
    from qkverify.errors import LawViolation as LawViolation
    from qkverify.errors import NotVerified as NotVerified
    from qkverify.errors import UnsupportedCase as UnsupportedCase
    from qkverify.rounding import Bounded as Bounded
    from qkverify.rounding import Precision as Precision
    from qkverify.runs.assertions import assert_at_least as assert_at_least
    from qkverify.runs.assertions import assert_at_most as assert_at_most
    from qkverify.runs.assertions import assert_identical as assert_identical
    from qkverify.runs.assertions import assert_true as assert_true
    from qkverify.runs.assertions import assert_within_bound as assert_within_bound
    from qkverify.strategies.attention_problems import problems as problems
    from qkverify.verification.checking import verify as verify
    from qkverify.verification.laws import law as law

__version__ = "0.1.0"

_HOMES = {
    "Bounded": "rounding",
    "ContractError": "errors",
    "Finding": "contract",
    "HarnessError": "errors",
    "Implementation": "contract",
    "LawViolation": "errors",
    "NotVerified": "errors",
    "Precision": "rounding",
    "UnsupportedCase": "errors",
    "assert_at_least": "runs.assertions",
    "assert_at_most": "runs.assertions",
    "assert_identical": "runs.assertions",
    "assert_true": "runs.assertions",
    "assert_within_bound": "runs.assertions",
    "implementation": "contract",
    "law": "verification.laws",
    "module": "contract.modules",
    "problems": "strategies",
    "verify": "verification.checking",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"qkverify.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'qkverify' has no attribute {name!r}; it has {', '.join(__all__)}")


class _Package(ModuleType):
    """Importing a submodule sets it as an attribute: `qkverify.problems` stays the function whatever was imported before."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

# In a checkout the folders reference/, implementations/, properties/ and benchmarks/ stand beside src/; in a wheel they
# stand in the package. Looking in the checkout too makes `qkverify.reference` mean the same in both.
_checkout = Path(__file__).resolve().parents[2]
if (_checkout / "pyproject.toml").is_file() and (_checkout / "reference").is_dir():
    __path__.append(str(_checkout))
