"""Which rankings a reward model is trained and tested on."""

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import encoding
from instructgpt_jax.data.records import Ranking, Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.training import inputs, reward


def rankings(count, labelers="abc", k=4):
  return [
    Ranking(
      turns=(Turn("user", f"prompt {i}"),),
      completions=tuple(f"{i} {j}" for j in range(k)),
      ranks=tuple(range(k, 0, -1)),
      labeler_id=labelers[i % len(labelers)],
    )
    for i in range(count)
  ]


def choose(seed=0, **options):
  splits = inputs.Splits(rankings(30), rankings(12), [])
  return reward._chosen(splits, configs.Reward(**options), seed)


def test_all_are_taken_by_default():
  found = choose()
  assert found == (rankings(30), rankings(12), [])


def test_a_labeler_left_out_is_tested_on_alone():
  found = choose(leave_out="b")
  assert {r.labeler_id for r in found.train + found.valid} == {"a", "c"}
  assert {r.labeler_id for r in found.left_out} == {"b"}
  assert len(found.left_out) == 4 and len(found.valid) == 8
  with pytest.raises(UserError, match=r"reward.leave_out.*\n.*a, b, c"):
    choose(leave_out="d")
  with pytest.raises(UserError, match="left to train on"):
    choose(leave_out="a,b,c")


def test_fewer_are_a_random_part_that_the_seed_decides():
  found = choose(max_rankings=10)
  assert len(found.train) == 10 and set(found.train) < set(rankings(30))
  assert found == choose(max_rankings=10) != choose(seed=1, max_rankings=10)
  assert found.valid == rankings(12)


def test_fewer_completions_keep_their_own_ranks():
  whole = {r.turns: r for r in rankings(30)}
  seen = set()
  for ranking in choose(max_completions=2).train:
    old = whole[ranking.turns]
    assert len(ranking.completions) == len(ranking.ranks) == 2
    for text, rank in zip(ranking.completions, ranking.ranks, strict=True):
      assert old.ranks[old.completions.index(text)] == rank
      seen.add(text.split()[1])
  assert seen == {"0", "1", "2", "3"}


def test_pairs_are_elements_of_their_own_without_ties():
  ids = [np.array([i]) for i in range(4)]
  one = encoding.EncodedRanking(np.array([9]), tuple(ids), (1, 2, 2, 3))
  found = encoding.split_into_pairs([one, one])
  assert len(found) == 2 * 5  # six pairs, one of them tied
  for pair in found:
    for completion, rank in zip(pair.completions, pair.ranks, strict=True):
      assert rank == one.ranks[int(completion[0])]
    assert pair.ranks[0] != pair.ranks[1]
