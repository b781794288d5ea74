"""Tests the simulated labelers: noise, tastes, ties and agreement."""

import random

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.world import facts, gold, labelers, replies, words, write

WORLD = facts.make_world(0)
PROMPTS = write.draw_prompts(WORLD, "train", 800, 0)
FACT = next(f for f in WORLD.facts if f.known)


def samples(request, rng, count=6):
  """Replies as one model gives them: it knows this prompt more or less."""
  skill = rng.random()
  shares = {
    "good": 0.75 * skill,
    "wrong": 0.8 * (1 - skill),
    "padded": 0.2 * skill,
    "rude": 0.01,
    "off": 0.2 * (1 - skill),
  }
  return [
    replies.reply(request, replies.draw_persona(shares, rng), rng)
    for _ in range(count)
  ]


def count_agreements(first, second):
  """Counts pairs ordered alike, and pairs that both rankings order strictly."""
  same = both = 0
  for i in range(len(first)):
    for j in range(i):
      a, b = first[i] - first[j], second[i] - second[j]
      both += bool(a and b)
      same += a * b > 0
  return same, both


def measured(first, second, rng):
  """Share of the pairs that both rank strictly on which they agree."""
  same = both = 0
  for request, text in PROMPTS:
    replied = samples(request, rng)
    ranks = [
      labelers.rank(
        text, replied, labeler_id=rng.choice(who), rng=rng, world=WORLD
      )
      for who in (first, second)
    ]
    alike, strict = count_agreements(*ranks)
    same += alike
    both += strict
  return same / both


def test_labelers_agree_as_often_as_in_the_paper():
  rng = random.Random(0)
  assert 0.70 < measured(labelers.TRAINING, labelers.TRAINING, rng) < 0.76


def test_held_out_labelers_agree_but_differ_in_taste():
  rng = random.Random(1)
  agreement = measured(labelers.TRAINING, labelers.HELD_OUT, rng)
  assert 0.66 < agreement < 0.78
  form = gold.label(
    FACT.question(0), f"well , {FACT.statement(FACT.true)}", world=WORLD
  )
  meant = {
    round(labelers.taste(labelers.LABELERS[name], form), 3)
    for name in labelers.HELD_OUT
  }
  assert len(meant) == 3


def test_without_noise_the_plain_labeler_ranks_by_gold():
  good = FACT.statement(FACT.true)
  completions = [words.UNKNOWN, good, f"well , {good} {words.FILLERS[-1]}",
                 good]  # fmt: skip
  ranks = labelers.rank(
    FACT.question(0),
    completions,
    labeler_id="labeler_a",
    rng=random.Random(0),
    world=WORLD,
    noise=0.0,
  )
  assert ranks == [3, 1, 2, 1]


def test_a_reply_that_never_ended_ranks_lower():
  good = FACT.statement(FACT.true)
  ranks = labelers.rank(
    FACT.question(0),
    [good, good],
    [False, True],
    labeler_id="labeler_a",
    rng=random.Random(0),
    world=WORLD,
    noise=0.0,
  )
  assert ranks == [2, 1]


def test_equal_replies_tie_under_noise():
  good = FACT.statement(FACT.true)
  for seed in range(20):
    ranks = labelers.rank(
      FACT.question(0),
      [good, words.UNKNOWN, good],
      labeler_id="labeler_b",
      rng=random.Random(seed),
      world=WORLD,
    )
    assert ranks[0] == ranks[2]
    assert min(ranks) == 1


def test_ratings_are_whole_and_on_the_scale():
  form = gold.label(FACT.question(0), FACT.statement(FACT.true), world=WORLD)
  rng = random.Random(0)
  ratings = {labelers.rate(form, "labeler_a", rng) for _ in range(500)}
  assert ratings <= set(range(1, 8)) and len(ratings) >= 5
  assert all(isinstance(rating, int) for rating in ratings)


def test_to_ranks():
  assert labelers.to_ranks([3, 7, 3, 1]) == [2, 1, 2, 3]


def test_an_unknown_labeler_is_a_user_error():
  form = gold.label(FACT.question(0), "x", world=WORLD)
  with pytest.raises(UserError) as error:
    labelers.rate(form, "labeler_z", random.Random(0))
  assert error.value.code == "unknown_labeler"
