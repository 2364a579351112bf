"""The assertions of laws, under the name that they had first: `from qkverify import assert_within_bound` is the one to use."""

from __future__ import annotations

from qkverify.runs.assertions import assert_at_least as assert_at_least
from qkverify.runs.assertions import assert_at_most as assert_at_most
from qkverify.runs.assertions import assert_identical as assert_identical
from qkverify.runs.assertions import assert_true as assert_true
from qkverify.runs.assertions import assert_within_bound as assert_within_bound
