"""Finding implementations: the folder, entry points, `module:function`, `path/file.py:function`, or a function itself. What is no
implementation of the folder may have `adapters` behind it: `path/file.py:function --layout BLHD`.

The folder is `implementations/` of the checkout, or the copy that the wheel carries; files of its subfolders (the planted
bugs) are loaded only when their path is given. Third parties register a module under the entry point group
`qkverify.implementations`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import operator
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from qkverify import foreign_text
from qkverify.contract import (
    NAME,
    REGISTERED,
    Implementation,
    adapters,
    callables,
    describe,
    frameworks,
    modules,
    parameter_names,
    with_defaults,
)
from qkverify.errors import NothingVerified, UsageError

GROUP = "qkverify.implementations"  # of entry points
FOLDER = "qkverify.implementations"  # the package that the folder is
RELATIVE = re.compile(r"^\s*from \.", re.M)  # an import that only a package can make
PROJECT_MARKS = ("pyproject.toml", "setup.py", "setup.cfg", ".git")  # of the folder that holds a project


@dataclass(frozen=True)
class Missing:
    """A file of the folder that cannot be imported here, and the sentence that says why."""

    name: str
    reason: str


class TargetImportError(UsageError):
    """A user's target raised on import; `text` is its own traceback."""

    def __init__(self, target: str, error: BaseException, roots: Sequence[Path] = ()) -> None:
        frames = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if "importlib" not in f.filename and f.filename != __file__
        ]
        self.text = foreign_text.shown(
            "Traceback (most recent call last):\n"
            + "".join(traceback.format_list(frames))
            + "".join(traceback.format_exception_only(error)),
            lines=200,
            characters=20_000,
        )
        hint = ""
        if isinstance(error, ImportError) and roots:
            hint = (
                f"\n  imports were looked up from {', '.join(map(str, roots))} and in this environment\n"
                "  install its package here (pip install -e .), or give it as module:function where `import module` works"
            )
        super().__init__(f"{target} could not be imported: {foreign_text.of_error(error)}{hint}")

    @classmethod
    def told(cls, message: str, text: str) -> TargetImportError:
        """The error that another process met."""
        error = cls.__new__(cls)
        UsageError.__init__(error, message)
        error.text = text
        return error


@lru_cache(maxsize=1)
def folder() -> tuple[tuple[Implementation, ...], tuple[Missing, ...]]:
    """Every implementation of `implementations/` and of the entry points, and the files that this machine cannot import."""
    package = importlib.import_module("qkverify.implementations")
    implementations: list[Implementation] = []
    missing: list[Missing] = []
    modules = [
        f"{package.__name__}.{path.stem}"
        for path in sorted(Path(package.__path__[0]).iterdir())
        if path.stem[0] not in "_." and (path.suffix == ".py" or (path / "__init__.py").is_file())
    ]
    modules += [point.value.partition(":")[0] for point in metadata.entry_points(group=GROUP)]
    for name in modules:
        try:
            implementations += registered_by(importlib.import_module(name))
        except ModuleNotFoundError as error:
            missing.append(
                Missing(
                    name.rpartition(".")[2],
                    f"{(error.name or 'a module').partition('.')[0]} is not installed",
                )
            )
    return tuple(implementations), tuple(missing)


def load_folder() -> list[Implementation]:
    """The implementations that can be imported here."""
    return list(folder()[0])


def registered_by(module: ModuleType) -> list[Implementation]:
    """What a module declared with `@implementation`, in the order of its file; of functions that it imports too."""
    files = [module.__file__] if getattr(module, "__file__", None) else []
    return [
        with_defaults(implementation)
        for implementation in REGISTERED
        if module.__name__ == implementation.function.__module__
        or implementation.file in files
        or implementation.declared_in in files
    ]


def find(target: str | Callable[..., Any] | Implementation) -> list[Implementation]:
    """The implementations that a target means. Raises UsageError naming what exists and the nearest name."""
    if isinstance(target, Implementation):
        return [target]
    if not isinstance(target, str):
        if modules.is_module(target):
            return [_declared(target) or modules.module(target)]
        if refused := modules.refusal(target, str(getattr(target, "__name__", type(target).__name__))):
            raise NothingVerified(refused)
        return [_declared(target) or with_defaults(describe(target))]
    target, words = adapters.split(target)
    if words:
        return [_adapted(target, words)]
    return _of_text(target)


def _adapted(target: str, words: Mapping[str, Any]) -> Implementation:
    """The one function or module of a target, with what was said of it. Raises UsageError for one that declares it itself."""
    said = adapters.written(words)
    if ":" not in target:
        raise UsageError(
            f"{target} {said}: this is said of module:function or path/file.py:function, and {target} is neither"
        )
    (found,) = _of_text(target, words)
    if found.declared or not found.adapters:
        raise UsageError(
            f"{target} {said}: it is declared in {Path(found.home).name}; say it there: {adapters.as_keywords(words)}"
        )
    return found


def _of_text(target: str, words: Mapping[str, Any] = MappingProxyType({})) -> list[Implementation]:
    place, _, attribute = target.rpartition(":") if ":" in target else (target, "", "")
    if place.endswith(".py") or "/" in place:
        return _of_module(load_file(place), attribute, target, words)
    if attribute:
        module, further = _imported_as_far(place, target)
        return _of_module(module, f"{further}{attribute}", target, words)
    names = {implementation.name: implementation for implementation in load_folder()}
    if target in names:
        return [names[target]]
    several = [implementation for name, implementation in names.items() if name.startswith(f"{target}-")]
    if several:
        return several
    for gone in folder()[1]:
        if target.partition("-")[0] == gone.name:
            raise UsageError(f"{target} cannot run here: {gone.reason}")
    unknown = UsageError.unknown("implementation", target, names)
    raise UsageError(f"{unknown}\n  or give module:function, or path/to/file.py:function")


def reload_implementation(name: str, file: str, function: str, said: str = "") -> Implementation:
    """The implementation in another process: what its file declares under its name, else the function of its file, which spares
    all other imports, else by its name. `said` are its adapters, as written behind a target.

    Raises UsageError where it was made on the fly and stands in no file.
    """
    with contextlib.suppress(UsageError):
        for declared in registered_by(load_file(file)):
            if declared.name == name:
                return declared
    for target in (*(f"{file}:{attribute}" for attribute in (name.rpartition(":")[2], function)), name):
        with contextlib.suppress(UsageError):
            return find(f"{target} {said}" if said else target)[0]
    raise UsageError(f"{name} cannot be loaded again in another process: define it in a file")


def load_file(path: str | Path) -> ModuleType:
    """The module in a file: by its dotted name if it is part of a package, else under a name of its own.

    Raises TargetImportError with the file's own traceback.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise UsageError.missing(file, str(path))
    package = importlib.import_module("qkverify.implementations")
    home = Path(package.__path__[0]).resolve()
    if file.is_relative_to(home):
        return _imported(
            ".".join([package.__name__, *file.relative_to(home).with_suffix("").parts]), str(path)
        )
    roots = import_roots(file)
    with _on_path(roots):
        packaged = _of_package(file, roots)
        return packaged if isinstance(packaged, ModuleType) else _alone(file, str(path), packaged)


def import_roots(file: Path) -> list[Path]:
    """The folders that imports in a file may start from, the likeliest first: above its package, its own, its project's."""
    package = file.parent
    if not (package / "__init__.py").is_file() and RELATIVE.search(file.read_text(errors="replace")):
        package = package.parent  # a package without that file
    while (package / "__init__.py").is_file():
        package = package.parent
    project = next((f for f in file.parents if any((f / mark).exists() for mark in PROJECT_MARKS)), None)
    roots = [package, file.parent, *([project / "src", project] if project else [])]
    return [root for root in dict.fromkeys(roots) if root.is_dir()]


@contextlib.contextmanager
def _on_path(roots: Sequence[Path]) -> Iterator[None]:
    """First on the path while a file is imported; afterwards last: a function may import when it is called."""
    added = [str(root) for root in roots]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            with contextlib.suppress(ValueError):  # the file may have taken it off
                sys.path.remove(folder)
        sys.path += [folder for folder in added if folder not in sys.path]


def _of_package(file: Path, roots: Sequence[Path]) -> ModuleType | BaseException | None:
    """The module of a file in a package, imported by its dotted name; what its import raised; None if it is in none."""
    if roots[0] == file.parent:
        return None
    parts = file.relative_to(roots[0]).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    try:
        module = importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    return module if Path(module.__file__ or "").resolve() == file else None  # another package has the name


def _alone(file: Path, path: str, packaged: BaseException | None) -> ModuleType:
    """The module of a file under a name of its own. `packaged` is what its import as part of a package raised."""
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a script that ends with sys.exit, say
        sys.modules.pop(name, None)
        first = packaged or error
        raise TargetImportError(path, first, import_roots(file)) from first
    return module


def _imported(name: str, target: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a module in the working folder is found, as with python -m
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"unknown target {target!r}: no module named {error.name!r}") from None
        raise TargetImportError(target, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as above
        raise TargetImportError(target, error) from error


def _imported_as_far(place: str, target: str) -> tuple[ModuleType, str]:
    """The module of "package.module.attribute", and "attribute." where that is no module: `torch.ops.aten`, say."""
    try:
        return _imported(place, target), ""
    except TargetImportError:
        raise
    except UsageError:
        above, _, last = place.rpartition(".")
        if not above:
            raise
        with contextlib.suppress(UsageError, AttributeError):
            module, further = _imported_as_far(above, target)
            operator.attrgetter(f"{further}{last}")(module)  # whether it is there
            return module, f"{further}{last}."
        raise


def _of_module(
    module: ModuleType, attribute: str, target: str, words: Mapping[str, Any]
) -> list[Implementation]:
    declared = registered_by(module)
    if not attribute:
        if not declared:
            raise UsageError(
                f"{target} has no function with @implementation; name the function: {target}:function"
            )
        return declared
    value: Any = module
    owner: Any = None
    for part in attribute.split("."):
        if not hasattr(value, part):
            by_name = [implementation for implementation in declared if implementation.name == attribute]
            if by_name:
                return by_name
            functions = [n for n, v in vars(value).items() if callable(v) and n[0] != "_"]
            raise UsageError.unknown("function", attribute, functions)
        owner, value = value, getattr(value, part)
    if modules.is_module(value):
        value = _declared(value, module) or modules.module(value)
    if isinstance(value, Implementation):
        value = modules.adapted(value, words, target) if words else value
        return [replace(value, name=_short(target), file=module.__file__ or value.file)]
    if refused := modules.refusal(value, target):
        raise NothingVerified(refused)
    if not callable(value):
        raise UsageError(f"{target} is a {type(value).__name__}, not a function")
    if declaration := _declared(value, module):
        return [declaration]
    callables.check_method(value, owner, target)
    callables.check_arrays(value, target, parameter_names(value))
    described = replace(_described(value, words, target), name=_short(target))
    stands = callables.behind(value) is value and (
        inspect.isroutine(value) or isinstance(value, functools.partial)
    )
    return [described if stands else replace(described, file=module.__file__ or described.file)]


def _described(function: Callable[..., Any], words: Mapping[str, Any], target: str) -> Implementation:
    """A function that nobody declared. Raises UsageError for what is said of it and cannot be."""
    if not words:
        return with_defaults(describe(function))
    if foreign := [name for name in words if adapters.ADAPTERS[name].of_modules]:
        raise UsageError(f"{target}: --{foreign[0]} is about a torch.nn.Module, and this is a function")
    try:
        return replace(with_defaults(describe(function, **words)), adapters=dict(words))
    except UsageError as error:
        raise UsageError(f"{target} {adapters.written(words)}: {error}") from None


def _declared(function: Callable[..., Any], module: ModuleType | None = None) -> Implementation | None:
    """What was declared of a function, by this module if it did."""
    declared = [
        with_defaults(implementation)
        for implementation in REGISTERED
        if any(function is known for known in _behind(implementation.function))
    ]
    here = getattr(module, "__file__", None)
    return min(declared, key=lambda implementation: implementation.declared_in != here, default=None)


def _behind(function: Any) -> tuple[Any, ...]:
    """A function, and what it was made of: a loss or a rotary function, a module."""
    return function, getattr(function, "adapted", None), getattr(function, "module", None)


def _short(target: str) -> str:
    """The name of an undeclared target in tables and test ids: what the user typed, without the folders of a path."""
    place, _, attribute = target.rpartition(":")
    return foreign_text.shown_line(
        f"{Path(place).stem if place.endswith('.py') else place}:{attribute}", characters=NAME
    )


def devices_of(implementation: Implementation, devices: tuple[str, ...] = ()) -> dict[str, str | None]:
    """For each device that it declares: None where it can run, or the reason why not."""
    answers: dict[str, str | None] = {}
    for device in devices or implementation.devices:
        if device not in implementation.devices:
            answers[device] = f"{implementation.name} does not declare {device}"
            continue
        reason = frameworks.missing(implementation.arrays) or frameworks.get(
            implementation.arrays
        ).unavailable(device)
        answers[device] = reason or _unavailable(implementation, device)
    return answers


def _unavailable(implementation: Implementation, device: str) -> str | None:
    """What the implementation itself says of a device: None, or why it cannot run there."""
    reason = implementation.available(device) if implementation.available else None
    return None if reason is None else foreign_text.shown_line(reason)
