"""An index: every invariant of the implementation has a test of its name.

A test called `test_invariant_NN_…` covers invariant NN of the table below, so
`pytest -k invariant_14` runs all that is known about number 14.
"""

import ast
import pathlib
import re

import pytest

INVARIANTS = {
  1: "before any update the ratio is 1, the approximate KL and clip fraction 0",
  2: "with a second minibatch the ratio varies",
  3: "KL(policy ‖ reference) starts at 0 at every sampling temperature",
  4: "sampling, old, new and reference log-probabilities share a temperature",
  5: "padding changes no logit; positions are cumsum(mask) − mask",
  6: "log-probabilities of cached decoding are those of the full pass",
  7: "dropout is off when sampling, scoring and computing log-probabilities",
  8: "pad ≠ end-of-text, and end-of-text is trained in SFT",
  9: "one random key a row, whatever its batch and devices",
  10: "no process drops a sample that the others keep",
  11: "rewards are floats, and add up to score − β Σ KL",
  12: "the score lands once, on the last response token",
  13: "the KL reward is log π − log π_ref of the sampled token",
  14: "what follows the end of a response never matters",
  15: "the penalty for a missing end tests the configured stop token",
  16: "value after a terminal is 0; bootstrapping is an explicit choice",
  17: "GAE as a scan is the plain loop; returns = advantages + values",
  18: "whitening is over the valid tokens of the global batch",
  19: "values are clipped around the rollout's; ½·max, masked",
  20: "k microbatches of b are one batch of k·b",
  21: "γ·∇LM is added into the PPO gradient's optimiser step",
  22: "the average of the weights moves once an optimiser step",
  23: "Adam's ε and its placement are stated",
  24: "the adaptive KL controller clips its error and counts episodes",
  25: "the K-way loss averages pairs within a prompt, then prompts",
  26: "K forward passes for a prompt",
  27: "the head starts as N(0, 1/(D + 1)); demonstrations score 0 on average",
  28: "the value network starts as the reward model, at every token",
  29: "reference and reward model never change",
  30: "save, restore and the next step are what an uninterrupted run gives",
}
NAME = re.compile(r"test_invariant_(\d\d)_[a-z]")


def _names():
  """Names of all tests that speak of an invariant, with their files."""
  here = pathlib.Path(__file__)
  for path in sorted(here.parent.rglob("test_*.py")):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.FunctionDef) and path != here:
        if re.match("test_.*invariant", node.name):
          yield f"{path.relative_to(here.parent)}::{node.name}"


def _number(name):
  found = NAME.match(name.split("::")[1])
  return int(found[1]) if found else None


@pytest.mark.parametrize("number", INVARIANTS)
def test_every_invariant_has_a_test_of_its_name(number):
  assert [name for name in _names() if _number(name) == number], INVARIANTS[
    number
  ]


def test_every_name_gives_a_known_number_in_two_digits():
  assert [n for n in _names() if _number(n) not in INVARIANTS] == []


def test_the_table_has_no_gap():
  assert list(INVARIANTS) == list(range(1, 31))
