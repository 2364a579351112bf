"""Functions whose parameters are those of an operation, and that compute something else, are not judged as that operation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qkverify import probes
from qkverify.contract import describe
from qkverify.errors import NothingVerified, UsageError


def exponentials(scores):
    return np.exp(scores - scores.max(-1, keepdims=True))


def log_sum_exp(scores):
    return np.log(np.exp(scores).sum(-1))


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def reduced(scores):
    return np.log(np.exp(scores).sum(-1))


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def weights(scores):
    return exponentials(scores) / exponentials(scores).sum(-1, keepdims=True)


def softmax_without_a_sum(scores):
    return exponentials(scores)


def fitted(function, **said):
    return probes.fitted(
        describe(function, **({"arrays": "numpy", "dtypes": ("float64",)} if said else {}), **said)
    )


@pytest.mark.parametrize("function", [log_sum_exp, log_softmax, sigmoid])
def test_a_name_that_says_another_operation_is_believed(function):
    with pytest.raises(UsageError, match="cannot tell what"):
        describe(function)


def test_what_gives_another_shape_is_not_judged_as_a_softmax():
    with pytest.raises(NothingVerified, match=r"gives shape \(3,\) for scores of shape \(3, 5\)"):
        fitted(reduced)


@pytest.mark.parametrize("function", [weights, softmax_without_a_sum])
def test_a_softmax_is_judged_and_a_wrong_one_that_is_called_so_too(function):
    assert fitted(function).operation == "softmax"


def test_rows_of_a_table_as_they_are_have_no_laws():
    def embedding(tokens, table):
        return table[tokens]

    with pytest.raises(NothingVerified, match="gives rows of the table as they are"):
        fitted(embedding)
    meant = replace(describe(embedding), adapters={"operation": "embedding"})  # as by --operation
    assert probes.fitted(meant).operation == "embedding"
