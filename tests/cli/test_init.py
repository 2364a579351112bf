"""`qkverify init`: what it finds by reading source text, and the files that it writes."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from qkverify.cli.init import adapter, candidates, console, files
from qkverify.errors import UsageError
from qkverify.verification import known_failures, settings

KERNEL = """
import numpy as np

raise_on_import = 1 / {divisor}

def attention(query, key, value, *, causal=False):
    key, value = (np.repeat(x, query.shape[1] // key.shape[1], axis=1) for x in (key, value))
    scores = query @ np.swapaxes(key, -1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    if causal:
        visible = np.tri(*scores.shape[-2:], scores.shape[-1] - scores.shape[-2], dtype=bool)
        scores = np.where(visible, scores, -np.inf)
    largest = scores.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isfinite(largest), largest, 0))
    total = weights.sum(-1, keepdims=True)
    return weights @ value / np.where(total == 0, 1, total)
"""
OTHERS = '''
import torch

from .attn import attention

class Attention(torch.nn.Module):
    def __init__(self, heads):
        super().__init__()

    def forward(self, q, k, v, is_causal: bool = False, softmax_scale=None):
        """A class is called through an object of it."""

def fused(xq, xk, xv, block_size, *, is_causal=False, sm_scale=0.5, dropout_p=0.0):
    """The block size is required, and qkverify does not know it."""

def eager(module, query_states, key_states, value_states, attention_mask, scaling, **keywords):
    """The inputs are not first."""

def turned(q, k, v, *, softmax_scale=None, window_size=(-1, -1), causal=False):
    """As flash-attn."""

def keys_of(mapping, kind, verbose):
    """Nothing of this."""

def rotate(q, k, positions):
    """Nothing of this either."""
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in {
        "attn.py": KERNEL.format(divisor=1),
        "others.py": OTHERS,
        "broken.py": "def f(q, k, v:\n",
    }.items():
        (tmp_path / "mykernel").mkdir(exist_ok=True)
        (tmp_path / "mykernel" / name).write_text(text)
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def qkverify(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qkverify.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def found() -> dict[str, candidates.Candidate]:
    return {candidate.name: candidate for candidate in candidates.of_folder(Path())}


def test_functions_that_take_query_key_and_value_are_found_by_reading_alone(folder) -> None:
    (folder / "mykernel" / "attn.py").write_text(KERNEL.format(divisor=0))  # it could not be imported
    names = found()
    assert list(names) == [
        "attention",
        "turned",
        "Attention",
        "fused",
        "eager",
    ]  # those that need no adapter first
    assert [name for name, candidate in names.items() if candidate.needs_adapter] == [
        "Attention",
        "fused",
        "eager",
    ]
    assert str(names["attention"]) == "mykernel/attn.py:6  attention(query, key, value, causal)"
    assert str(names["Attention"]).endswith("Attention.forward(q, k, v, is_causal, softmax_scale)")
    assert names["fused"].unknown == ("block_size",)
    assert names["eager"].unknown == ("module",)
    assert names["eager"].first == 1
    assert {names["attention"].arrays, names["fused"].arrays} == {"numpy", "torch"}


def test_what_is_imported_from_an_adapter_is_named_without_src() -> None:
    assert candidates.module_of(Path("src/mykernel/__init__.py")) == "mykernel"
    assert candidates.module_of(Path("mykernel/deep/attn.py")) == "mykernel.deep.attn"


def test_what_somebody_else_would_be_warned_of_is_not_printed(folder) -> None:
    done = qkverify("init")
    assert (done.returncode, done.stderr) == (0, "")


def test_environments_and_hidden_folders_are_passed_over(folder) -> None:
    for name in (".venv", "env", "build"):
        (folder / name / "lib").mkdir(parents=True)
        (folder / name / "lib" / "theirs.py").write_text("def theirs(q, k, v): ...\n")
    (folder / "env" / "pyvenv.cfg").touch()
    assert "theirs" not in found()


def test_without_a_target_each_candidate_has_its_line(folder, capsys) -> None:
    console.candidates(candidates.of_folder(Path()))
    said = capsys.readouterr().out
    assert "qkverify verify mykernel/attn.py:attention\n" in said
    assert "qkverify init mykernel/others.py:fused    # it needs an adapter" in said
    console.candidates([])
    assert "name yours" in capsys.readouterr().out


def test_the_files_are_written_once_and_never_again(folder, capsys) -> None:
    for file in files.files_for("mykernel/attn.py:attention").files:
        console.written(file)
    assert capsys.readouterr().out.count("wrote ") == 5
    (folder / "qkverify_laws.py").write_text("mine\n")
    (folder / ".pre-commit-config.yaml").write_text("repos: []\n")
    for file in files.files_for("mykernel/attn.py:attention").files:
        console.written(file)
    said = capsys.readouterr().out
    assert said.count("exists         ") == 5
    assert "wrote " not in said
    assert (folder / "qkverify_laws.py").read_text() == "mine\n"
    assert "entry: qkverify verify mykernel/attn.py:attention" in said  # what the other hooks' file lacks
    assert (folder / ".pre-commit-config.yaml").read_text() == "repos: []\n"


def written_for(target: str) -> None:
    prepared = files.files_for(target)
    for file in prepared.files:
        console.written(file)
    console.next_steps(prepared)


def test_a_further_function_is_added_to_the_files_that_name_functions(folder, capsys) -> None:
    (folder / "pyproject.toml").write_text('[tool.qkverify]\ntargets = ["plain.py:attention"]\n')
    for name in ("plain.py", "second.py"):
        (folder / name).write_text(KERNEL.format(divisor=1))
    written_for("plain.py:attention")
    before = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    written_for("plain.py:attention")
    said = capsys.readouterr().out
    assert said.count("left as it is, and names this target") == 3
    assert ": add" not in said
    written_for("second.py:attention")
    said = capsys.readouterr().out
    assert "names this target" not in said
    assert "def test_second_attention_keeps_the_laws():" in said
    assert "- run: qkverify verify second.py:attention " in said
    assert "--junit qkverify-second_attention.xml" in said
    assert "entry: qkverify verify second.py:attention " in said
    assert 'add "second.py:attention" to the targets of' in said
    assert {path: path.read_text() for path in folder.rglob("*") if path.is_file()} == before

    added = said[said.index("        def test_second") : said.index("exists         qkverify_laws.py")]
    test = folder / "tests" / "test_attention_laws.py"
    test.write_text(f"{test.read_text()}\n\n{textwrap.dedent(added)}")
    names = [node.name for node in ast.parse(test.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert names == ["test_attention_keeps_the_laws", "test_second_attention_keeps_the_laws"]


def test_a_dry_run_prints_and_writes_nothing(folder) -> None:
    before = sorted(folder.rglob("*"))
    done = qkverify("init", "mykernel/others.py:fused", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "--- qkverify_adapter.py\n" in done.stdout
    assert "--- .github/workflows/qkverify.yml\n" in done.stdout
    assert sorted(folder.rglob("*")) == before


def test_what_is_written_works_as_it_is(folder) -> None:
    """The test, and each command that the workflow and the hook run."""
    done = qkverify("init", "mykernel/attn.py:attention")
    assert done.returncode == 0, done.stderr
    assert not known_failures.read(known_failures.FILE)
    lines = done.stdout.partition("add to pyproject.toml:\n")[2].partition("next")[0]
    (folder / "pyproject.toml").write_text("\n".join(line.strip() for line in lines.splitlines()) + "\n")
    assert settings.read().targets == ("mykernel/attn.py:attention",)
    workflow = (folder / ".github/workflows/qkverify.yml").read_text()
    hook = (folder / ".pre-commit-config.yaml").read_text()
    (in_ci,) = re.findall(r"run: (qkverify verify .*)", workflow)
    (in_hook,) = re.findall(r"entry: (qkverify verify .*)", hook)
    for command in (in_ci, in_hook):
        ran = qkverify(*shlex.split(command)[1:], "--profile", "glance", "--dtype", "float32")
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "qkverify_laws   1 law " in qkverify("verify", "--law", "qkverify_laws").stdout
    assert (folder / "qkverify.xml").is_file()
    test = folder / "tests" / "test_attention_laws.py"
    test.write_text(test.read_text().replace('profile="quick"', 'profile="glance", dtypes=["float32"]'))
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q"], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout


def test_the_test_that_is_written_fails_for_a_wrong_kernel(folder) -> None:
    qkverify("init", "mykernel/attn.py:attention")
    (folder / "mykernel" / "attn.py").write_text(KERNEL.format(divisor=1).replace("** -0.5", "** -0.4"))
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q"], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 1
    assert "smallest problem" in ran.stdout


def test_an_adapter_calls_the_function_by_its_own_names(folder) -> None:
    text = adapter.source(found()["fused"])
    compile(text, adapter.FILE, "exec")
    assert "def attention(query, key, value, *, causal=False, scale=0.5):" in text
    assert "return fused(query, key, value, is_causal=causal, sm_scale=scale, block_size=BLOCK_SIZE)" in text
    assert adapter.to_fill_in(found()["fused"]) == ["BLOCK_SIZE, which fused requires"]
    text = adapter.source(found()["eager"])
    compile(text, adapter.FILE, "exec")
    assert (
        "eager(query_states=query, key_states=key, value_states=value, attention_mask=mask, scaling=scale, module=MODULE)"
        in text
    )
    text = adapter.source(found()["Attention"])
    compile(text, adapter.FILE, "exec")
    assert "module = Attention()  # fill in" in text
    assert "return module(query, key, value, is_causal=causal, softmax_scale=scale)" in text
    assert 'layout="BLHD"' in adapter.source(found()["turned"])


def test_an_adapter_of_a_right_function_is_verified(folder) -> None:
    kernel = KERNEL.format(divisor=1).replace(
        "def attention(query, key, value", "def mine(module, query, key, value"
    )
    (folder / "src").mkdir()
    (folder / ".git").mkdir()  # a project, whose src/ is looked into
    (folder / "src" / "flat.py").write_text(kernel)
    done = qkverify("init", "src/flat.py:mine")
    assert "fill in        qkverify_adapter.py: MODULE, which mine requires" in done.stdout, (
        done.stdout + done.stderr
    )
    unfinished = qkverify(
        "verify", "qkverify_adapter.py", "--profile", "glance", "--dtype", "float32", "--law", "attention"
    )
    assert unfinished.returncode != 0
    assert "MODULE" in unfinished.stdout + unfinished.stderr
    text = (folder / adapter.FILE).read_text()
    (folder / adapter.FILE).write_text(re.sub(r"# MODULE = .*", "MODULE = None", text))
    done = qkverify(
        "verify", "qkverify_adapter.py", "--profile", "glance", "--dtype", "float32", "--law", "attention"
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mykernel/atn.py:attention", r"no such file: mykernel/atn.py\n.*Did you mean 'attn.py'\?"),
        ("mykernel/attn.py:atention", r"unknown function 'atention'. Did you mean 'attention'\?"),
        ("mykernel/attn.py", "does not name a function"),
        ("mykernel/broken.py:f", "cannot be read as Python"),
        ("/etc/attn.py:attention", "no such file"),
    ],
)
def test_a_mistake_is_said(folder, target, said) -> None:
    with pytest.raises(UsageError, match=said):
        files.files_for(target)


def test_an_adapter_is_written_for_attention_alone(folder) -> None:
    assert adapter.FILE in {
        str(file.path) for file in files.files_for("mykernel.attn:attention", with_adapter=True).files
    }
    with pytest.raises(UsageError, match="takes query, key and value"):
        files.files_for("mykernel/others.py:rotate", with_adapter=True)


def test_every_setting_that_is_printed_is_one(folder) -> None:
    table = tomllib.loads(files.settings_for("a.py:b"))["tool"]["qkverify"]
    assert set(table) <= set(settings.KEYS)
