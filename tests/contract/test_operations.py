"""Operations are found by their files: one of their name in each package that knows of them."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from qkverify.contract import operations
from qkverify.contract.operations import DESCRIBED, in_each

# Package -> what its files hold, and whether every operation but attention has one.
PACKAGES = {
    "qkverify.contract.operations": ("OPERATION", False),
    "qkverify.strategies.operations": ("SPEC", True),
    "qkverify.counterexamples.diagnosis.operations": ("KIND", True),
    "qkverify.counterexamples.scripts.operations": ("steps", True),
    "qkverify.timing.operation_sizes": ("CASES", True),
    "qkverify.runs.exact_gradients": ("gradients", False),
}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_file_of_an_operation_has_its_name(package: str) -> None:
    """A misspelt one would be found by nobody."""
    attribute, every = PACKAGES[package]
    root = importlib.import_module(package)
    modules = [
        importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(root.__path__)
    ]
    holding = {module.__name__.rpartition(".")[2] for module in modules if hasattr(module, attribute)}
    assert holding
    assert holding <= DESCRIBED.keys()
    assert in_each(package, attribute).keys() == holding
    assert not every or holding == DESCRIBED.keys() - {"attention"}


def test_a_new_file_is_a_new_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doubled.py").write_text(
        "from qkverify.contract.operation import Operation\n\nORDER = 25\n"
        'OPERATION = Operation("2 x", {"x": "(N,)"}, "(N,)")\n'
    )
    monkeypatch.setattr(operations, "__path__", [*operations.__path__, str(tmp_path)])
    names = list(operations._described())
    assert names[1:4] == ["softmax", "doubled", "multi_head_attention"]
