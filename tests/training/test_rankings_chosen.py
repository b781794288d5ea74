"""Selection of rankings for training and testing a reward model."""

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.configs import checks
from instructgpt_jax.data import encoding, tokenizers
from instructgpt_jax.data.records import Ranking, Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.training import inputs
from instructgpt_jax.training import rankings as rankings_lib


def rankings(count, labelers="abc", k=4):
  return [
    Ranking(
      turns=(Turn("user", f"prompt {i}"),),
      completions=tuple(f"{i} {j}" for j in range(k)),
      ranks=tuple(range(k, 0, -1)),
      grades=tuple(float(-rank) for rank in range(k, 0, -1)),
      labeler_id=labelers[i % len(labelers)],
    )
    for i in range(count)
  ]


def choose(seed=0, **options):
  splits = inputs.Splits(rankings(30), rankings(12), [])
  return rankings_lib.select_rankings(splits, configs.Reward(**options), seed)


def test_all_rankings_are_used_by_default():
  actual = choose()
  assert actual == (rankings(30), rankings(12), [])


def test_left_out_labeler_is_tested_separately():
  actual = choose(leave_out="b")
  assert {r.labeler_id for r in actual.train + actual.valid} == {"a", "c"}
  assert {r.labeler_id for r in actual.left_out} == {"b"}
  assert len(actual.left_out) == 4 and len(actual.valid) == 8
  for labelers, code in (("d", "unknown_labeler"), ("a,b,c", "no_rankings")):
    with pytest.raises(UserError) as error:
      choose(leave_out=labelers)
    assert (error.value.code, error.value.field) == (code, "reward.leave_out")


def test_max_rankings_selects_by_seed():
  actual = choose(max_rankings=10)
  assert len(actual.train) == 10 and set(actual.train) < set(rankings(30))
  assert actual == choose(max_rankings=10) != choose(seed=1, max_rankings=10)
  assert actual.valid == rankings(12)


def test_max_completions_keeps_ranks():
  whole = {r.turns: r for r in rankings(30)}
  visited = set()
  for ranking in choose(max_completions=2).train:
    old = whole[ranking.turns]
    assert ranking.grades == tuple(-float(rank) for rank in ranking.ranks)
    assert len(ranking.completions) == len(ranking.ranks) == 2
    for text, rank in zip(ranking.completions, ranking.ranks, strict=True):
      assert old.ranks[old.completions.index(text)] == rank
      visited.add(text.split()[1])
  assert visited == {"0", "1", "2", "3"}


@pytest.mark.parametrize(
  "ranks, grades, margin, is_refused",
  [
    ((1, 2, 3), (7.0, 3.0, 1.0), "grade", False),
    ((1, 2, 3), (), "grade", True),
    ((1, 2, 3), (), "rank", False),
    ((1, 2, 1), (7.0, 3.0, 7.0), "rank", True),
    ((1, 2, 3), (), None, False),
  ],
)
def test_a_margin_needs_grades(
  tmp_path, monkeypatch, ranks, grades, margin, is_refused
):
  record = Ranking(
    turns=(Turn("user", "q"),),
    completions=("a", "b", "c"),
    ranks=ranks,
    grades=grades,
    origin="x.jsonl:3",
  )
  path = tmp_path / "x.jsonl"
  path.write_text("")
  monkeypatch.setattr(
    inputs, "rankings", lambda *_: inputs.Splits([record], [record], [])
  )
  config = configs.RewardExperiment(
    reward=configs.Reward(margin=margin),
    data=configs.Data(comparisons=str(path)),
  )
  tokenizer = tokenizers.train_tokenizer(
    ["q a b c"], configs.Tokenizer(kind="word", vocab_size=64)
  )
  if is_refused:
    with pytest.raises(UserError) as error:
      rankings_lib.open_rankings(config, tokenizer)
    assert (error.value.code, error.value.field) == (
      "no_grades", "reward.margin",
    )  # fmt: skip
    assert margin == "rank" or "x.jsonl:3" in str(error.value)
  else:
    assert rankings_lib.open_rankings(config, tokenizer).train[0].ranks == ranks


def test_a_coefficient_needs_a_margin():
  checks.check_margin(configs.Reward(margin="rank", margin_coef=0.5))
  with pytest.raises(UserError) as error:
    checks.check_margin(configs.Reward(margin_coef=0.5))
  assert error.value.code == "unused_coefficient"
  assert configs.Reward(margin="rank").logits_per_grade == pytest.approx(1 / 3)


def test_split_into_pairs_omits_ties():
  ids = [np.array([i]) for i in range(4)]
  one = encoding.EncodedRanking(np.array([9]), tuple(ids), (1, 2, 2, 3))
  actual = encoding.split_into_pairs([one, one])
  assert len(actual) == 2 * 5  # six pairs, one of them tied
  for pair in actual:
    for completion, rank in zip(pair.completions, pair.ranks, strict=True):
      assert rank == one.ranks[int(completion[0])]
    assert pair.ranks[0] != pair.ranks[1]
  graded = one._replace(grades=(4.0, 3.0, 3.0, 1.0))
  for pair in encoding.split_into_pairs([graded]):
    assert pair.grades == tuple(
      graded.grades[int(c[0])] for c in pair.completions
    )
