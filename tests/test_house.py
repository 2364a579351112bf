"""The rooms of the engine: `make imports`, part of `make lint`, refuses an import against their order."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
FOLDERS = ("src", "reference", "implementations", "properties", "benchmarks")
COMMANDS = Path(sys.executable).parent

pytestmark = [
    pytest.mark.skipif(not (COMMANDS / "lint-imports").exists(), reason="needs import-linter: make install"),
    pytest.mark.skipif(shutil.which("make") is None, reason="needs make"),
]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of everything that is imported, to plant imports in."""
    for name in FOLDERS:
        shutil.copytree(CHECKOUT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, tmp_path)
    return tmp_path


def checked(house: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "-s", "imports", f"BIN={COMMANDS}"]
    return subprocess.run(command, cwd=house, capture_output=True, text=True, timeout=300)


def test_the_order_is_kept(house: Path) -> None:
    done = checked(house)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "named"),
    [
        ("src/qkverify/rounding/formats.py", "from qkverify.cli import main", "qkverify.rounding.formats -> qkverify.cli"),
        ("src/qkverify/runs/run.py", "from qkverify.timing import clocks", "qkverify.runs.run -> qkverify.timing"),
        ("implementations/numpy_tiled/tiles.py", "from qkverify.reference import masks", "implementations.numpy_tiled.tiles"),
        ("properties/test_heads.py", "from qkverify.benchmarks import agreement", "qkverify.properties.test_heads"),
        ("src/qkverify/lonely.py", "", "qkverify.lonely"),
    ],
)  # fmt: skip
def test_an_import_against_it_is_refused(house: Path, file: str, line: str, named: str) -> None:
    path = house / file
    before = path.read_text(encoding="utf-8") if path.exists() else '"""Flat."""\n'
    path.write_text(f"{before}\n{line}\n", encoding="utf-8")
    done = checked(house)
    assert done.returncode != 0
    assert named in " ".join(done.stdout.split()), done.stdout
