"""Parameters of a function that mean nothing to the contract: no law gives them a value, so they are named, with what was meant.

    sentence("pad_mask", "attention", {"causal"})   ->   "unknown, not verified; did you mean key_lengths or mask?"

What was meant is found by `WORDS`, which libraries have for the same things, else by closeness to a name that the operation
knows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from qkverify.contract import OPTIONS, SIGNATURE_STYLES, SPELLINGS
from qkverify.contract.operations import DESCRIBED

# Parts of names that libraries use, and the options that such a parameter may mean, the likelier first.
WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pad|valid", ("key_lengths", "mask", "padding", "memory_lengths")),
    ("len|cu_seq", ("key_lengths", "memory_lengths", "longest_query", "longest_key")),
    ("causal|autoregressive|lookahead|look_ahead|triangular|tril|future", ("causal",)),
    ("bias|additive|relative", ("bias",)),
    ("slope|alibi", ("alibi_slopes",)),
    ("window|sliding|local|band|span", ("window",)),
    ("cap|clip|clamp|tanh", ("softcap",)),
    ("drop", ("dropout",)),
    ("temp|tau|scal|multiplier", ("scale",)),
    ("sink", ("sinks",)),
    ("lse|logsumexp|log_sum_exp", ("return_lse",)),
    ("smooth", ("smoothing",)),
    ("interleave|neox|style|rotate", ("layout",)),
    ("pre_norm|prenorm|norm_before", ("norm_first",)),
    ("epsilon", ("eps",)),
    ("head", ("heads",)),
    ("mask|visible|allowed", ("mask", "bias")),
)
# What laws cannot reach of a module whose class or instance is a target, and why not.
OF_MODULES = {
    "biases": "zero in all calls",
    "cross-attention": "query, key and value are given the same tokens",
    "other masks": "only a causal one is given",
    "masks": "what they mean could not be told",
}
CLOSENESS = 0.6  # of names, as difflib measures it; its own default
SUGGESTED = 2  # options that are named at most


def sentence(
    name: str, operation: str, offers: Collection[str], unknown: str = "unknown, not verified"
) -> str:
    """What is said of an unknown parameter: that it is one, and what it may have been meant to be."""
    if name in OF_MODULES:
        return OF_MODULES[name]
    if name.startswith("*"):
        return "not verified: no law passes anything through it"
    if name in _options(
        operation
    ):  # a function that follows a library's conventions, which have no such parameter
        return f"{unknown}: its other parameters follow a library's names, which do not include this one"
    meant = suggestions(name, operation, offers)
    return unknown + (f"; did you mean {' or '.join(meant)}?" if meant else "")


def suggestions(name: str, operation: str, offers: Collection[str]) -> list[str]:
    """The options that a parameter may mean: at most two, the likelier first, and none that the function has already."""
    options = _options(operation)
    low = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    spelled = {spelling: option for spelling, option in _spellings().items() if option in options}
    spelled |= {option: option for option in options}
    meant = next((means for words, means in WORDS if re.search(words, low) and options & {*means}), None)
    if meant is None:
        meant = tuple(
            spelled[near] for near in difflib.get_close_matches(low, spelled, n=3, cutoff=CLOSENESS)
        )
    lacking = [option for option in dict.fromkeys(meant) if option in options and option not in offers]
    return lacking[:SUGGESTED]


def _options(operation: str) -> set[str]:
    """The names that laws of an operation put to use."""
    if operation == "attention":
        return {*OPTIONS, "dropout"}
    return {name for words in DESCRIBED[operation].options for name in words.split(", ")}


def _spellings() -> dict[str, str]:
    """How libraries spell the options."""
    return {
        spelling: option
        for names in (SPELLINGS, *(convention.names for convention in SIGNATURE_STYLES.values()))
        for spelling, option in names.items()
    }
