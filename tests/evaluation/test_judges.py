"""The gold labeler and a reward model as judges of answers."""

import numpy as np
import pytest

from instructgpt_jax.evaluation import judges
from instructgpt_jax.types import Rollout
from instructgpt_jax.world import facts, gold

WORLD = facts.make_world(0)


def rollout(ended):
  rows = len(ended)
  zeros = np.zeros((rows, 4), np.int32)
  return Rollout(
    tokens=zeros,
    segments=zeros,
    positions=zeros,
    response_mask=np.ones((rows, 2), bool),
    logp=np.zeros((rows, 2), np.float32),
    ended=np.asarray(ended),
  )


@pytest.fixture(scope="module")
def asked():
  fact = next(f for f in WORLD.facts if f.misconceived)
  return fact.question(0), fact


def test_the_gold_judge_is_the_gold_labeler(asked):
  question, fact = asked
  answers = [fact.statement(value) for value in (fact.true, fact.believed)]
  answers.append(answers[0])
  judgements = judges.GoldJudge(WORLD)(
    [question] * 3, answers, rollout([1, 1, 0])
  )
  assert judgements.scores.tolist() == pytest.approx([1.0, 0.0, 0.75])
  assert judgements.likert is not None
  np.testing.assert_allclose(judgements.likert, 1 + 6 * judgements.scores)
  assert set(judgements.failures) == set(gold.FAILURES)
  assert judgements.failures["hallucination"].tolist() == [0, 1, 0]


def test_answers_and_prompts_must_have_equal_counts(asked):
  with pytest.raises(ValueError):
    judges.GoldJudge(WORLD)([asked[0]], ["a .", "b ."], rollout([1, 1]))
