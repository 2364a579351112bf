"""Functions of a repository that look like attention: found by reading source text, nothing is imported.

A candidate has a query, a key and a value next to one another among its parameters. It is verified as it is if they come
first, in a function of a module, and nothing unknown is required beside them; anything else needs an adapter.
"""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qkverify.contract import FURTHER, OPTIONS, SIGNATURE_STYLES, SPELLINGS
from qkverify.errors import UsageError

LEFT_OUT = ("build", "dist", "node_modules", "site-packages", "third_party", "__pycache__")
KNOWN = {
    *OPTIONS,
    *FURTHER,
    *SPELLINGS,
    *(name for style in SIGNATURE_STYLES.values() for name in style.names),
}


@dataclass(frozen=True)
class Candidate:
    """One function, as its source says. `method` is that of a class through which it is called, "" of a plain function."""

    file: Path
    line: int
    name: str
    method: str
    parameters: tuple[str, ...]
    defaults: Mapping[str, str]  # of those that have one, as the source writes it
    imports: frozenset[str]  # packages that the file imports

    @property
    def target(self) -> str:
        """How `qkverify verify` is told of it."""
        return f"{self.file}:{self.name}"

    @property
    def first(self) -> int:
        """The place of the query among the parameters."""
        return next(
            at for at in range(len(self.parameters) - 2) if _are_query_key_value(self.parameters[at:])
        )

    @property
    def unknown(self) -> tuple[str, ...]:
        """Parameters that must be given and that qkverify gives no value to."""
        inputs = self.parameters[self.first : self.first + 3]
        return tuple(
            name for name in self.parameters if name not in {*inputs, *self.defaults} and name not in KNOWN
        )

    @property
    def needs_adapter(self) -> bool:
        """Whether `qkverify verify` cannot call it as it is."""
        initials = [name[0].lower() for name in self.parameters[:3]]
        return bool(self.method) or self.first > 0 or initials != ["q", "k", "v"] or bool(self.unknown)

    @property
    def arrays(self) -> str:
        """The framework of its arrays, by what the file imports."""
        return next((name for name in ("torch", "jax") if name in self.imports), "numpy")

    def __str__(self) -> str:
        owner = f"{self.name}.{self.method}" if self.method else self.name
        return f"{self.file}:{self.line}  {owner}({', '.join(self.parameters)})"


def of_folder(folder: Path) -> list[Candidate]:
    """The candidates of every Python file below a folder, those that need no adapter first."""
    candidates = [candidate for file in _files(folder) for candidate in of_file(file)]
    return sorted(
        candidates, key=lambda candidate: (candidate.needs_adapter, str(candidate.file), candidate.line)
    )


def of_file(file: Path) -> list[Candidate]:
    """The candidates of one file; none of a file that is no Python of this version."""
    try:
        tree = _parsed(file)
    except UsageError:
        return []
    packages = frozenset(_packages(tree))
    candidates = []
    for name, method, function in _functions(tree):
        every = [*function.args.posonlyargs, *function.args.args]
        names = [argument.arg for argument in every if argument.arg not in ("self", "cls")]
        last = function.args.defaults
        defaults = dict(zip(names[len(names) - len(last) :], map(ast.unparse, last), strict=False))
        for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
            names.append(argument.arg)
            defaults |= {} if default is None else {argument.arg: ast.unparse(default)}
        if any(_are_query_key_value(names[at:]) for at in range(len(names) - 2)):
            candidates.append(
                Candidate(file, function.lineno, name, method, tuple(names), defaults, packages)
            )
    return candidates


def names_of(file: Path) -> list[str]:
    """The names of a file's functions and classes. Raises UsageError for a file that is no Python of this version."""
    tree = _parsed(file)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assigned = [
        t.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for t in node.targets
        if isinstance(t, ast.Name)
    ]
    return [node.name for node in tree.body if isinstance(node, kinds)] + assigned


def _parsed(file: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an escape in somebody's string
        try:
            return ast.parse(file.read_bytes())
        except (SyntaxError, ValueError, OSError, RecursionError) as error:
            raise UsageError(f"{file} cannot be read as Python: {error}") from None


def module_of(file: Path) -> str:
    """The name under which a file is imported from the repository's folder; `src/` is no package."""
    parts = file.with_suffix("").parts
    parts = parts[1:] if parts[0] == "src" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if name[0] != "." and name not in LEFT_OUT and not (here / name / "pyvenv.cfg").is_file()
        )
        yield from (here.relative_to(folder) / name for name in sorted(files) if name.endswith(".py"))


def _functions(tree: ast.Module) -> Iterator[tuple[str, str, ast.FunctionDef]]:
    """(name, method, definition) of each function of the module, and of what a class is called by."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, "", node
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name in ("forward", "__call__"):
                    yield node.name, part.name, part


def _packages(tree: ast.Module) -> Iterator[str]:
    """The packages that a file imports, but for its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def _are_query_key_value(names: Sequence[str]) -> bool:
    return len(names) >= 3 and all(
        _is(letter, name.lower()) for letter, name in zip("qkv", names[:3], strict=True)
    )


WORDS = {"q": "query", "k": "key", "v": "value"}


def _is(letter: str, name: str) -> bool:
    """q, query, q_heads, query_states, xq, x_q, and so on."""
    parts = name.split("_")
    whole = (letter, f"x{letter}", WORDS[letter], f"{WORDS[letter]}s", "queries" if letter == "q" else letter)
    return any(part in whole for part in parts)
