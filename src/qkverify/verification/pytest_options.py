"""The options that the pytest plugin adds, under names that nobody else took.

`--device`, `--dtype` and the like are options of many conftests and plugins, and pytest ends a session in which one name is
added twice. Whoever installs qkverify must not lose sessions that have nothing to do with it: its options are added last, after
every conftest, and one whose name is taken is called `--qkverify-device`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

REPEATED: Mapping[str, Any] = MappingProxyType({"action": "append", "default": []})
OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "implementation": {
            **REPEATED,
            "metavar": "TARGET",
            "help": "verify this: a name, module:function or path/file.py:function, or 'mine.py:attention --layout BLHD' "
            "(repeatable; default: the targets of [tool.qkverify] in pyproject.toml, else all that qkverify has)",
        },
        "dtype": {**REPEATED, "metavar": "DTYPE", "help": "only this dtype (repeatable)"},
        "device": {**REPEATED, "metavar": "DEVICE", "help": "only this device (repeatable)"},
        "law": {
            **REPEATED,
            "metavar": "NAME",
            "help": "only this law, family, or pattern such as 'causal_*' (repeatable)",
        },
        "skip-law": {
            **REPEATED,
            "metavar": "NAME",
            "help": "leave out this law, family, or pattern (repeatable)",
        },
        "known-failures": {
            "default": None,
            "metavar": "FILE",
            "help": "known failures and their reasons; default: qkverify-known-failures.toml",
        },
        "require-precision": {
            "default": None,
            "metavar": "MODEL",
            "help": "fused, or fused-fast-exp: fail if a function can only be judged by a looser model of rounding",
        },
        "strict-verification": {
            "action": "store_true",
            "default": False,
            "help": "exit code 4 if something that is offered was not verified; by default only if nothing was",
        },
        "results": {
            "default": None,
            "metavar": "FILE",
            "help": "append the verdicts to this file, as JSON lines",
        },
    }
)


def add(parser: pytest.Parser) -> None:
    """Add the options to a parser to which everybody else has added theirs."""
    taken = _names(parser)
    group = parser.getgroup("qkverify", "verification of attention")
    for name, attributes in OPTIONS.items():
        free = f"--{name}" if f"--{name}" not in taken else f"--qkverify-{name}"
        if free not in taken:  # they are there: the plugin was registered twice
            group.addoption(free, dest=_destination(name), **attributes)


def value(config: pytest.Config, name: str) -> Any:
    """What an option was given, or its default."""
    return config.getoption(_destination(name), OPTIONS[name]["default"])


def _destination(name: str) -> str:
    return f"qkverify_{name.replace('-', '_')}"


def _names(parser: pytest.Parser) -> set[str]:
    """Every option there is. pytest tells nobody of them but through these two attributes."""
    groups = [*parser._groups, parser._anonymous]
    return {name for group in groups for option in group.options for name in option.names()}
