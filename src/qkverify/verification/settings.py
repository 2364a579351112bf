"""`[tool.qkverify]` of the nearest pyproject.toml that has it, from the working folder upwards.

    [tool.qkverify]
    targets = ["mykernel/attn.py:attention"]     # what `qkverify verify` checks when it is given none
    profile = "quick"
    dtypes = ["float32"]
    devices = ["cpu"]
    laws = ["attention", "causal_*"]             # as --law
    skip = ["dropout"]                           # as --skip
    own_laws = ["tests/test_laws.py"]            # as --own-laws
    known_failures = "qkverify-known-failures.toml"
    require_precision = "fused"                  # as --require-precision

    [tool.qkverify.adapters."mykernel/attn.py:attention"]   # as --layout and the like, wherever this target is named
    layout = "BLHD"
    weights = {"c_attn.weight" = "qkv"}

What the command line gives counts instead. Paths are those of the file's folder.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from qkverify.contract import adapters as contract_adapters
from qkverify.errors import UsageError
from qkverify.verification import known_failures
from qkverify.verification.known_failures import KnownFailure

NAME = "pyproject.toml"


@dataclass(frozen=True)
class Settings:
    """What a repository asks for; `file` is where it says so, None where it says nothing."""

    file: Path | None = None
    targets: tuple[Any, ...] = ()  # texts in a file; Python callers give functions too
    profile: str = ""
    dtypes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    own_laws: tuple[str, ...] = ()
    known_failures: str = ""
    require_precision: str = ""
    adapters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by the text of their target

    def __str__(self) -> str:
        """ "profile quick, skip dropout": what is in force, for the screen."""
        pairs = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("file", "targets", "adapters")
        }
        words = {
            name: " ".join(value) if isinstance(value, tuple) else value for name, value in pairs.items()
        }
        return ", ".join(f"{name.replace('_', ' ')} {word}" for name, word in words.items() if word)

    def given(self, **given: Sequence[str] | str | None) -> Settings:
        """With what the command line gives, which counts instead; None and what is empty is not given."""
        pairs = {
            name: value if isinstance(value, str) else tuple(dict.fromkeys(value))
            for name, value in given.items()
            if value
        }
        chosen = replace(self, **pairs)  # type: ignore[arg-type]  # each field gets what its option collects
        return replace(chosen, targets=tuple(map(self.adapted, chosen.targets)))

    def adapted(self, target: Any) -> Any:
        """A target with the adapters of its table behind it; what it says itself counts instead."""
        if not isinstance(target, str):
            return target
        place, _ = contract_adapters.split(target)
        said = next((words for name, words in self.adapters.items() if _same(name, place)), {})
        return contract_adapters.joined(target, said)

    def entries(self) -> tuple[KnownFailure, ...]:
        """The known failures. Raises UsageError for a file that is not right."""
        return known_failures.read(self.known_failures) if self.known_failures else ()


KEYS = tuple(f.name for f in fields(Settings) if f.name != "file")


def read(start: Path | None = None) -> Settings:
    """The settings in force in a folder (default: the working folder). Raises UsageError naming file and key."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        file = folder / NAME
        if file.is_file() and (table := _table(file)) is not None:
            return _settings(file, table)
    default = here / known_failures.FILE
    return Settings(known_failures=_shown(default)) if default.is_file() else Settings()


def _table(file: Path) -> Any:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("qkverify")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{_shown(file)} is not valid TOML: {error}") from None


def _settings(file: Path, table: Any) -> Settings:
    where = f"{_shown(file)}, [tool.qkverify]"
    if not isinstance(table, dict):
        raise UsageError(f"{where}: is {table!r}; it must be a table")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in KEYS:
            raise UsageError(f"{where}: {UsageError.unknown('key', key, KEYS)}")
        if key == "adapters":
            values[key] = _adapters(where, value)
        elif key in ("profile", "known_failures", "require_precision"):
            if not isinstance(value, str):
                raise UsageError(f"{where}: {key} is {value!r}; it must be a string")
            values[key] = value
        elif isinstance(value, list) and all(isinstance(word, str) for word in value):
            values[key] = tuple(value)
        else:
            raise UsageError(f"{where}: {key} is {value!r}; it must be a list of strings")
    return Settings(file=Path(_shown(file)), **_placed(file.parent, values))


def _adapters(where: str, value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(words, dict) for words in value.values()):
        raise UsageError(f"{where}: adapters is {value!r}; it must be a table for each target")
    return {
        target: contract_adapters.checked(words, f'{where[:-1]}.adapters."{target}"]')
        for target, words in value.items()
    }


def _placed(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """With paths as seen from the working folder."""
    targets = [_target(folder, target) for target in values.get("targets", ())]
    own_laws = [_shown(folder / path) for path in values.get("own_laws", ())]
    if "known_failures" in values:
        known = _shown(folder / values["known_failures"])
    else:
        known = _shown(folder / known_failures.FILE) if (folder / known_failures.FILE).is_file() else ""
    said = {_target(folder, target): words for target, words in values.get("adapters", {}).items()}
    return {
        **values,
        "targets": tuple(targets),
        "own_laws": tuple(own_laws),
        "known_failures": known,
        "adapters": said,
    }


def _target(folder: Path, target: str) -> str:
    text, words = contract_adapters.split(target)
    place, colon, attribute = text.rpartition(":") if ":" in text else (text, "", "")
    placed = f"{_shown(folder / place)}{colon}{attribute}" if place.endswith(".py") else text
    return contract_adapters.joined(placed, words)


def _same(target: str, other: str) -> bool:
    """Whether two texts name one target: their paths may be written in different ways."""
    return _target(Path.cwd(), target) == _target(Path.cwd(), other)


def _shown(path: Path) -> str:
    """A path as a person in the working folder would type it, if it lies there."""
    here, full = Path.cwd().resolve(), path.resolve()
    return str(full.relative_to(here) if full.is_relative_to(here) else full)
