"""Where the function is: how a script gets at it."""

from __future__ import annotations

import json
import keyword
import operator
import runpy
import sys
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qkverify.contract import REGISTERED, Implementation
from qkverify.counterexamples.scripts.recorder import ARRAYS
from qkverify.runs import watch

SLOW = 0.05  # seconds: a file that took longer to load is not loaded again
_seconds: dict[str, float] = {}  # what it took, by file
TAKEN = {*ARRAYS, "x", "q", "k", "v", "g", "got", "exact", "top", "total", "weights", "scores", "products", "numbers", "ahead",
         "alone", "attend", "norm", "feed", "added", "found", "gradients", "source", "np", "torch", "jax", "positions",
         "other", "softmax_of"}  # fmt: skip


@dataclass(frozen=True)
class FunctionSource:
    """How a script gets at the function (and its vjp): by import where that can be, else out of its file."""

    functions: Mapping[str, Any]  # by what the script calls them
    attributes: Mapping[str, str]  # what the module calls them
    module: str
    file: str
    folder: str | None  # what an import needs on the path; "": nothing, it is installed; None: not importable

    @classmethod
    def of(cls, implementation: Implementation) -> FunctionSource | None:
        """None where no module has the function under a name."""
        located = _attribute(implementation.function, implementation.name)
        if located is None:
            return None
        module, attribute = located
        alias = attribute.rpartition(".")[2]
        alias = "function" if alias in TAKEN or keyword.iskeyword(alias) else alias
        functions: dict[str, Any] = {alias: implementation.function}
        attributes = {alias: attribute}
        beside = f"{attribute}_vjp"  # of the function, as `attention_vjp` stands beside `attention`
        vjp = (
            (_attribute(implementation.vjp, "") or _attribute(implementation.vjp, f"{module}:{beside}"))
            if implementation.vjp is not None
            else None
        )
        if vjp is not None and vjp[0] == module:
            functions[f"{alias}_vjp"], attributes[f"{alias}_vjp"] = implementation.vjp, vjp[1]
        file = getattr(sys.modules[module], "__file__", None) or ""
        folder = _importable_from(module, file)
        if folder is None and not file.endswith(".py"):
            return None
        return cls(functions, attributes, module, file, folder)

    @property
    def alias(self) -> str:
        return next(iter(self.functions))

    def afresh(self) -> Mapping[str, Any]:
        """The functions out of their file once more, without what earlier calls left in its caches; else as they are."""
        if self.folder == "" or _seconds.get(self.file, 0.0) > SLOW:
            return self.functions
        registered, start = len(REGISTERED), time.perf_counter()
        try:
            with watch.call():
                module = SimpleNamespace(**runpy.run_path(self.file))
            return {
                alias: operator.attrgetter(attribute)(module) for alias, attribute in self.attributes.items()
            }
        except BaseException as error:  # a file that cannot be loaded twice, or not on its own
            if watch.is_users_interrupt(error):
                raise
            return self.functions
        finally:
            del REGISTERED[registered:]
            _seconds[self.file] = time.perf_counter() - start

    def lines(self, used: list[str]) -> tuple[list[str], list[str]]:
        """(imports, what comes after them) for these functions."""
        if self.folder is None:
            got = [f"{a} = {_loaded(self.attributes[a])}" for a in used]
            return ["import os", "import runpy", "import sys"], [
                f"FILE = {literal(self.file)}  # what is under test", "", "sys.path.append(os.path.dirname(FILE))",
                "loaded = runpy.run_path(FILE)", *got,
            ]  # fmt: skip
        roots = sorted({self.attributes[a].partition(".")[0] for a in used})
        lines = [f"from {self.module} import {', '.join(roots)}"]
        lines += [f"{a} = {self.attributes[a]}" for a in used if self.attributes[a] != a]
        if not self.folder:
            return lines[:1], lines[1:]
        return ["import sys"], [f"sys.path.insert(0, {literal(self.folder)})  # where it is", *lines]


def _attribute(function: Any, name: str) -> tuple[str, str] | None:
    """(module, attribute) under which the function is found again: as it was asked for, else as it calls itself."""
    named_module, _, path = name.rpartition(":")
    own_module = str(getattr(function, "__module__", "") or "")
    for module, attribute in ((named_module, path), (own_module, str(getattr(function, "__qualname__", "")))):
        value: Any = sys.modules.get(module)
        for part in attribute.split(".") if value is not None else ():
            value = getattr(value, part, None)
        if value is function and all(part.isidentifier() for part in attribute.split(".")):
            return module, attribute
    everything = vars(sys.modules[own_module]) if own_module in sys.modules else {}
    names = (key for key, value in everything.items() if value is function and key.isidentifier())
    return next(((own_module, key) for key in names), None)


def literal(text: str) -> str:
    """The text as Python source, whatever is in it."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)


def _loaded(attribute: str) -> str:
    """What stands under a name, or under a name of a class, in the globals of a file."""
    name, _, rest = attribute.partition(".")
    return f'loaded["{name}"]{rest and f".{rest}"}'


def _is_dotted_name(module: str) -> bool:
    """Whether an import statement can name it: a file may be called anything."""
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in module.split("."))


def _importable_from(module: str, file: str) -> str | None:
    """The folder that an import of the module needs on the path: "" if it is installed, None if it cannot be imported."""
    if module == "__main__" or module.partition(".")[0] == "qkverify" or not _is_dotted_name(module):
        return None
    if not file:
        return ""  # built in
    parts, path = module.split("."), Path(file).resolve()
    path = path.parent if path.stem == "__init__" else path
    if [*path.parts[-len(parts) : -1], path.name.partition(".")[0]] != parts:
        return None
    folder = path.parents[len(parts) - 1]
    return "" if folder in {Path(p).resolve() for p in sysconfig.get_paths().values()} else str(folder)
