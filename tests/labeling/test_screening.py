"""Candidates beside the cuts, against computations by hand."""

import math

import pytest

from instructgpt_jax.labeling import screening
from instructgpt_jax.labeling.screening import Cuts, ScreeningAnswer


def sensitive(name, flags, gold):
  return ScreeningAnswer(
    candidate=name,
    kind="sensitive",
    content={"sensitive": flags},
    gold=None if gold is None else {"sensitive": gold},
  )


def ranking(name, ranks, gold):
  return ScreeningAnswer(
    candidate=name,
    kind="ranking",
    content={"ranks": ranks},
    gold={"ranks": gold},
  )


def demonstration(name, *ratings):
  return ScreeningAnswer(
    candidate=name,
    kind="demonstration",
    content={"answer": "…"},
    ratings=ratings,
  )


def groups(name, chosen, other=""):
  return ScreeningAnswer(
    candidate=name,
    kind="groups",
    content={"groups": chosen, "other": other},
  )


def test_each_criterion_by_hand():
  (row,) = screening.screen_candidates(
    [
      sensitive("ann", [True, True, False], [True, False, False]),
      sensitive("ann", [True], [True]),
      sensitive("ann", [True], None),
      ranking("ann", [1, 2, 3], [1, 3, 2]),  # 2 of 3 pairs
      ranking("ann", [1, 1, 2], [1, 2, 3]),  # 2 of 2 pairs, one tie
      ranking("ann", [], [1, 2, 3]),  # cannot judge
      demonstration("ann", 7, 5),
      demonstration("ann", 6),
      demonstration("ann"),
      groups("ann", ["Women", "Muslims"], "Sámi"),
    ]
  )
  assert (row.sensitive.value, row.sensitive.count) == (3 / 4, 4)
  assert (row.ranking.value, row.ranking.count) == (4 / 5, 5)
  assert (row.demonstration.value, row.demonstration.count) == (6.0, 2)
  assert row.demonstration.pending == 1
  assert row.groups == ("Women", "Muslims", "Sámi")
  assert row.answers == 10
  # Each value is at its cut or above.
  assert row.passed is True


@pytest.mark.parametrize(
  "flags, passed", [([True] * 3 + [False], True), ([True] * 2 + [False] * 2, 0)]
)
def test_a_value_at_the_cut_reaches_it(flags, passed):
  (row,) = screening.screen_candidates([sensitive("a", flags, [True] * 4)])
  assert row.sensitive.passed == bool(passed)
  # The other criteria have no value yet.
  assert row.passed is (None if passed else False)


def test_candidates_are_kept_apart_and_sorted():
  rows = screening.screen_candidates(
    [demonstration("zoe", 7), demonstration("ann", 2), groups("mia", [])]
  )
  assert [r.candidate for r in rows] == ["ann", "mia", "zoe"]
  assert [r.demonstration.value for r in rows[::2]] == [2, 7]
  assert math.isnan(rows[1].demonstration.value)
  assert [r.passed for r in rows] == [False, None, None]


def test_cuts_are_settings():
  answers = [demonstration("a", 5.5)]
  (row,) = screening.screen_candidates(answers, Cuts(demonstration=5.0))
  assert row.demonstration.passed is True
  (row,) = screening.screen_candidates(answers)
  assert row.demonstration.passed is False


def test_no_candidates():
  assert screening.screen_candidates([]) == []
