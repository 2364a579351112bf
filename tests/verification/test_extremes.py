"""The general laws reach numbers, biases and blocks at which a kernel fails alone: planted bugs that show nowhere else."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import Phase

from qkverify.strategies.attention_problems import problems
from qkverify.verification.checking import check, law_book, prepare
from qkverify.verification.mutation_testing import cell_of, planted

LAWS = {law.name: law for law in law_book()}
OUTPUT, GRADIENTS = "agrees_with_reference", "vjp_agrees_with_reference"
BUGS = {
    "A046": GRADIENTS,
    "A047": GRADIENTS,
    "A048": OUTPUT,
    "A049": OUTPUT,
    "A050": OUTPUT,
    "A051": OUTPUT,
    "A052": OUTPUT,
}
SEED = 5  # with others too; each of these is found by the default profile, of 100 examples, in most runs


def outcome(bug, law, examples):
    (mutant,) = [implementation for implementation in planted() if f"-{bug}-" in implementation.name]
    found = check(
        law,
        prepare(cell_of(mutant)),
        max_examples=examples,
        seed=SEED,
        database=None,
        phases=(Phase.generate,),
    )
    return found.outcome


@pytest.mark.parametrize(("bug", "law"), BUGS.items())
def test_a_general_law_sees_what_fails_at_extremes_alone(bug, law, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert outcome(bug, LAWS[law], 100) == "failed"


@pytest.mark.parametrize("bug", ["A046", "A047", "A051"])
def test_ordinary_numbers_do_not_show_it(bug, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    law = LAWS[BUGS[bug]]
    ordinary = dataclasses.replace(law, arguments={"problem": problems(upstream=BUGS[bug] == GRADIENTS)})
    assert outcome(bug, ordinary, 50) == "passed"
