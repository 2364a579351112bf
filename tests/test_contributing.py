"""CONTRIBUTING.md is true: its paths exist, its rooms are those of the linter in the same order, its examples work."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FOLDERS = (
    "reference",
    "implementations",
    "properties",
    "benchmarks",
)  # beside the engine, and layers of the linter too
LAW_OF_THE_EXAMPLE = """
from qkverify import implementation
import numpy as np

@implementation(arrays="numpy", dtypes=("float32",), requires=("G == H", "K >= 1"))
def attention(query, key, value):
    scores = query @ key.swapaxes(-1, -2) * query.shape[-1] ** -0.5
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return 2 * (weights / weights.sum(axis=-1, keepdims=True)) @ value
"""


def example(name: str) -> str:
    """The code block that follows a marker."""
    return TEXT.split(f"<!-- example: {name} -->\n```python\n")[1].split("```")[0]


def section(heading: str) -> str:
    return re.split(r"^#+ ", TEXT.split(f"# {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def qkverify(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qkverify.cli", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_every_path_exists() -> None:
    """`<family>` and the like stand for any name; paths of the engine may leave out src/qkverify/."""
    named = re.findall(r"`([\w./<>-]+(?:/|\.py|\.toml|\.json|\.md|\.txt))`", TEXT)
    assert len(named) > 40
    for path in named:
        pattern = re.sub(r"<\w+>", "*", path).rstrip("/")
        places = (ROOT, ROOT / "src" / "qkverify", ROOT / "benchmarks" / "workloads")
        assert any(list(place.glob(pattern)) for place in places), path


def test_the_rooms_are_those_of_the_linter_in_the_same_order() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    order = [name.strip() for layer in reversed(layers) for name in layer.split("|")]
    rows = re.findall(r"^\| (`.*?) \|", section("The rooms of the engine"), re.MULTILINE)
    rooms = [name for row in rows for name in re.findall(r"`(\w+)(?:/|\.py)`", row)]
    assert rooms == [name for name in order if name not in FOLDERS]
    assert set(rooms) == {
        path.stem for path in (ROOT / "src" / "qkverify").iterdir()
        if path.name not in ("__init__.py", "__pycache__", "py.typed")
    }  # fmt: skip


def test_ten_tasks_name_the_file_to_open() -> None:
    rows = re.findall(r"^\| (an? .*?) \| (.*?) \|", section("Which file to open"), re.MULTILINE)
    tasks = ("law", "dtype", "export", "GPU probe", "section of the page", "workload", "mistake", "parameter names",
             "convention", "command")  # fmt: skip
    for task in tasks:
        opened = [where for what, where in rows if task in what]
        assert opened, task
        assert "`" in opened[0]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("FORMATS", "src/qkverify/rounding/formats.py"), ("DTYPES", "src/qkverify/contract/options.py"),
        ("NUMPY_DTYPES", "src/qkverify/runs/framework_adapter.py"), ("SEMANTICS", "src/qkverify/contract/options.py"),
        ("SIGNATURE_STYLES", "src/qkverify/contract/signature_styles.py"), ("def rows", "src/qkverify/probes/precision.py"),
        ("OPERATION", "src/qkverify/contract/operations/softmax.py"), ("@app.command", "src/qkverify/cli/commands/new.py"),
        ("SPEC", "src/qkverify/strategies/operations/softmax.py"), ("COMMANDS", "src/qkverify/cli/help_texts.py"),
    ],
)  # fmt: skip
def test_a_file_to_open_holds_what_is_changed_there(name: str, file: str) -> None:
    assert f"`{file}`" in TEXT
    assert re.search(rf"^{re.escape(name)}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_implementation_holds(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(example("implementation"))
    done = qkverify("verify", "mine.py", "--profile", "glance", "--dtype", "float32", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_law_finds_weights_that_are_doubled(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LAW_OF_THE_EXAMPLE)
    (tmp_path / "laws.py").write_text(example("law"))
    words = ("--own-laws", "laws.py", "--law", "weights_are_shares", "--profile", "glance")
    broken = qkverify("verify", "mine.py", *words, cwd=tmp_path)
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert "weights_are_shares: Every attention weight lies between 0 and 1." in broken.stdout
    (tmp_path / "mine.py").write_text(LAW_OF_THE_EXAMPLE.replace("return 2 * (", "return ("))
    assert "BROKEN" not in qkverify("verify", "mine.py", *words, cwd=tmp_path).stdout


def test_the_mutant_is_killed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(example("mutant"))
    words = ("--law", "attention", "--profile", "quick", "--dtype", "float32")
    done = qkverify("verify", "mine.py", *words, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "mutant-B004-bias-is-scaled-too" in done.stdout
