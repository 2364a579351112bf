"""The arguments that a module class is built with, guessed from their names; a configuration object is imitated.

What is passed: sizes, switches that turn dropout off, and what the user gave by name. Everything else keeps its default. A
required argument that says nothing is asked for (`NothingVerified` with the line to paste).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qkverify.contract.modules.argument_roles import SIZES, role_of
from qkverify.errors import NothingVerified

CONFIGURATIONS = (
    "config",
    "cfg",
    "conf",
    "configuration",
    "args",
    "params",
    "hparams",
    "opt",
    "model_args",
    "hps",
    "options",
)
SWITCHES = ("causal", "norm_first", "eps")  # options of operations that a class may take where it is built
_NONE_NEEDED = ("device", "dtype", "layer_id", "layer_idx", "layer_index", "name", "prefix")


@dataclass(frozen=True)
class Construction:
    """How a class is built: each argument's role, or its value where `given` has one. `fields` are those of a configuration."""

    cls: type
    roles: Mapping[str, str] = field(default_factory=dict)  # argument -> role
    given: Mapping[str, Any] = field(
        default_factory=dict
    )  # argument or field -> role or value, the user's own words
    configuration: str | None = None  # the argument that is a configuration object

    def __call__(self, sizes: Mapping[str, Any]) -> Any:
        """An instance for these sizes: roles to numbers. Raises what the constructor raises."""
        arguments = {name: sizes[role] for name, role in self.roles.items() if role in sizes}
        arguments |= {
            name: valued(self.given[name], sizes) for name in self.given if name in self._parameters
        }
        if self.configuration is not None:
            arguments[self.configuration] = Configuration(sizes, self.given)
        return self.cls(**arguments)

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return parameters(self.cls)

    @property
    def takes(self) -> frozenset[str]:
        """The roles that its arguments have."""
        words = {word for word in self.given.values() if isinstance(word, str)}
        return frozenset({*self.roles.values(), *words})


def valued(word: Any, sizes: Mapping[str, Any]) -> Any:
    """The number that a role stands for, or the value itself."""
    return sizes[word] if isinstance(word, str) and word in SIZES else word


def construction(cls: type, given: Mapping[str, Any]) -> Construction:
    """How a class is built, where `given` maps arguments (or fields of its configuration) to roles or values.

    Raises NothingVerified naming a required argument whose name says nothing.
    """
    roles: dict[str, str] = {}
    configuration = None
    for name, parameter in parameters(cls).items():
        required = parameter.default is inspect.Parameter.empty
        role = role_of(name)
        if name in given:
            continue
        if name in CONFIGURATIONS and required:
            configuration = name
        elif role in SIZES or role in ("off", *SWITCHES):
            if _passed(role, parameter):
                roles[name] = role
        elif required and name in _NONE_NEEDED:
            roles[name] = "nothing"
        elif required and "bias" in name:
            roles[name] = "yes"
        elif required:
            raise NothingVerified(unknown_argument(cls, name))
    return Construction(cls, roles, given, configuration)


def _passed(role: str, parameter: inspect.Parameter) -> bool:
    """Whether an argument of this role is set: not where its default is no number, as of `dropout=nn.Dropout`."""
    default = parameter.default
    if default is inspect.Parameter.empty or (role == "eps" and default is None):
        return True
    if role in SIZES and default is None:
        return role == "head_size"
    return isinstance(default, int | float) and not (role in SIZES and isinstance(default, bool))


def parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """The arguments of a constructor that can be given by name."""
    every: Mapping[str, inspect.Parameter] = inspect.signature(cls).parameters
    return {name: p for name, p in every.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def unknown_argument(cls: type, name: str) -> str:
    """What is asked of the user where an argument's name says nothing."""
    return (
        f"{cls.__name__} is a class, and its argument {name!r} could mean anything\n"
        f"  say what it is: --sizes {name}=WHAT, or in the file: "
        f"attention = qkverify.module({cls.__name__}, sizes={{{name!r}: ...}})\n"
        f"  a value that is passed on, or one of the words {', '.join(SIZES)}"
    )


class Configuration:
    """Stands for a configuration object, or a dictionary: each field is what its name says. `unknown` are those asked in vain."""

    def __init__(self, sizes: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self.__dict__.update(_sizes=sizes, _given=given, unknown=[])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _field(name, self._sizes, self._given)
        if value is _field:
            self.unknown.append(name)
            raise AttributeError(f"the configuration has no field {name!r}")
        return value

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError as error:
            raise KeyError(name) from error

    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


def _field(name: str, sizes: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """The value of a field; this function itself where the name says nothing."""
    if name in given:
        return valued(given[name], sizes)
    role = role_of(name)
    if role is not None and role in sizes:
        return sizes[role]
    if "bias" in name:
        return True
    unknown: Callable[..., Any] = _field
    return unknown
