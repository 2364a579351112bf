"""What one says of a function that its code does not show, as data: its layout, what its mask means, where its weights are.

The same words are keywords of `@implementation(...)`, options of a command, keys of a table in `pyproject.toml`, and part of a
target's own text, wherever one is taken: `mine.py:attention --layout BLHD --mask additive:BK`. All else is still found out.
"""

from __future__ import annotations

import ast
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from qkverify.contract import mask_forms
from qkverify.contract.axes import LAYOUTS
from qkverify.contract.modules_used import FRAMEWORKS
from qkverify.contract.options import OPERATIONS
from qkverify.contract.signatures import _rules
from qkverify.errors import UsageError


@dataclass(frozen=True)
class Adapter:
    """One word. `checked` gives its value as it is kept, and raises UsageError for what is none.

    `kind` says how it is written: one word, one word several times, or NAME=VALUE several times.
    """

    kind: Literal["word", "words", "pairs"]
    checked: Callable[[Any], Any]
    of_modules: bool = False  # of a torch.nn.Module, not of a function


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{value!r} is not a word")
    return value


def _one_of(what: str, names: Sequence[str]) -> Callable[[Any], str]:
    def checked(value: Any) -> str:
        if value not in names:
            raise UsageError.unknown(what, str(value), names)
        return str(value)

    return checked


def _part(value: Any) -> int | str:
    """Which part of a result: a number from 0 on, or the name of a key or an attribute."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = _text(value)
    return int(text) if text.removeprefix("-").isdecimal() else text


def _mask(value: Any) -> str:
    form = _text(value)
    mask_forms.checked(form)
    return form if ":" in form else f"{form}:{mask_forms.FULL}"


def _always(value: Any) -> tuple[str, ...]:
    option = _one_of("option that a function may always have", ("causal",))
    return tuple(map(option, _several(value)))


def _several(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, str | list | tuple):
        raise UsageError(f"{value!r} is neither a word nor a list of words")
    return (value,) if isinstance(value, str) else tuple(value)


def _requires(value: Any) -> tuple[str, ...]:
    return _rules(tuple(map(_text, _several(value))))


def _pairs(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{value!r} gives no name a value")
    return dict(value)


def _words(value: Any) -> dict[str, str]:
    return {name: _text(word) for name, word in _pairs(value).items()}


ADAPTERS: Mapping[str, Adapter] = MappingProxyType(
    {
        "operation": Adapter("word", _one_of("operation", tuple(OPERATIONS))),
        "arrays": Adapter("word", _one_of("framework", tuple(FRAMEWORKS))),
        "layout": Adapter("word", _one_of("layout", tuple(LAYOUTS))),
        "returns": Adapter("word", _part),
        "output": Adapter("word", _text),
        "mask": Adapter("word", _mask),
        "always": Adapter("words", _always),
        "requires": Adapter("words", _requires),
        "parameters": Adapter("pairs", _words),
        "constants": Adapter("pairs", _pairs),
        "weights": Adapter("pairs", _words, of_modules=True),
        "sizes": Adapter("pairs", _pairs, of_modules=True),
    }
)


def checked(words: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Adapters with their values as they are kept; what is None is left out. `where` begins an error.

    Raises UsageError that names the word, what it was given, and what there is.
    """
    kept = {}
    for name, value in words.items():
        if name not in ADAPTERS:
            unknown = UsageError.unknown("adapter", name, ADAPTERS)
            raise UsageError(f"{where}: {unknown}" if where else str(unknown))
        if value is None:
            continue
        try:
            kept[name] = ADAPTERS[name].checked(value)
        except (UsageError, TypeError) as error:
            raise UsageError(f"{where}: {name}: {error}" if where else f"{name}: {error}") from None
    return kept


def split(target: str) -> tuple[str, dict[str, Any]]:
    """A target's text without its adapters, and these. Raises UsageError for one that does not exist."""
    place, mark, rest = target.partition(" --")
    if not mark:
        return target.strip(), {}
    texts: dict[str, list[str]] = {}
    try:
        words = shlex.split(f"--{rest}")
    except ValueError as error:
        raise UsageError(f"{target}: {error}") from None
    while words:
        name, equals, text = words.pop(0).partition("=")
        if not name.startswith("--"):
            raise UsageError(f"{target}: {name!r} belongs to no adapter; each is --NAME VALUE")
        if not equals and not words:
            raise UsageError(f"{target}: {name} has no value")
        texts.setdefault(name[2:], []).append(text if equals else words.pop(0))
    return place.strip(), of_texts(texts, target)


def of_texts(texts: Mapping[str, Sequence[str] | None], where: str = "") -> dict[str, Any]:
    """Adapters of what was written on a command line: for each the values it was given. Raises UsageError."""
    words: dict[str, Any] = {}
    for name, given in texts.items():
        kind = ADAPTERS[name].kind if name in ADAPTERS else "word"
        if not given:
            continue
        if kind == "word" and len(set(given)) > 1:
            raise UsageError(
                f"{where + ': ' if where else ''}--{name} is given {' and '.join(given)}; only one holds"
            )
        words[name] = given[-1] if kind == "word" else tuple(given)
        if kind == "pairs":
            words[name] = dict(_pair(name, text, where) for text in given)
    return checked(words, where)


def _pair(name: str, text: str, where: str) -> tuple[str, Any]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise UsageError(f"{where + ': ' if where else ''}--{name} {text}: it is NAME=VALUE")
    return left, _literal(right) if name in ("constants", "sizes") else right


def _literal(text: str) -> Any:
    """A number, a bool, None or a tuple as Python writes it; any other text is a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def joined(target: str, words: Mapping[str, Any]) -> str:
    """A target's text with these adapters; what it says itself counts instead."""
    place, own = split(target)
    every = {**words, **own}
    return f"{place} {written(every)}" if every else place


def written(words: Mapping[str, Any]) -> str:
    """Adapters as they are written behind a target: "--layout BLHD --returns 0"."""
    return " ".join(
        f"--{name} {shlex.quote(text)}" for name, value in words.items() for text in _texts(name, value)
    )


def _texts(name: str, value: Any) -> list[str]:
    kind = ADAPTERS[name].kind
    if kind == "pairs":
        return [f"{left}={_shown(right)}" for left, right in value.items()]
    return list(value) if kind == "words" else [str(value)]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and _literal(value) == value else repr(value)


def as_keywords(words: Mapping[str, Any]) -> str:
    """Adapters as `@implementation` takes them: 'layout="BLHD", returns=0'."""
    one = {name: value[0] if name == "always" else value for name, value in words.items()}
    return ", ".join(
        f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}" for name, value in one.items()
    )
