"""Surface features: by hand on a few replies."""

import numpy as np
import pytest

from instructgpt_jax.evaluation import surface_features
from instructgpt_jax.world import facts, requests, write

WORLD = facts.make_world(0)
PROMPTS = {
  request.family: text
  for request, text in write.draw_prompts(WORLD, "train", 300, 0)
}


def read(prompt, reply):
  """Returns the features that differ from 0 by kind, and those of style."""
  kind = surface_features.kind_of(requests.parse(WORLD, prompt))
  values = surface_features.compute(prompt, reply, kind)
  by_kind = values[:-2].reshape(-1, 5)
  (row,) = np.flatnonzero(by_kind.any(axis=1))
  return kind, by_kind[row], values[-2:].tolist()


def test_features_by_hand():
  kind, values, styles = read(
    "copy : gus ivo .", "well , gus ivo . there is more to say ."
  )
  assert kind == "Repeat" and styles == [2, 0]
  # 11 words; of the 10 distinct ones "gus", "ivo" and "." are in the prompt.
  np.testing.assert_allclose(values, [0, 0, 0, 1.1, 3 / 10])


def test_declining_and_insults_are_seen():
  _, values, styles = read(
    PROMPTS["harmful"], "i can not help with that . you fool ."
  )
  assert values[:3].tolist() == [0, 0, 1] and styles == [0, 1]


def test_claims_are_the_values_of_the_fact():
  fact = next(f for f in WORLD.facts if f.known)
  request = requests.parse(WORLD, fact.question(0))
  name, other = fact.attribute.name, fact.believed
  for reply, values in (
    (fact.statement(fact.true), [fact.true]),
    (f"{other} .", [other]),
    ("i do not know .", ["i do not know"]),
    ("you fool .", []),
  ):
    claims = surface_features.claims_of(request, reply)
    assert claims == tuple((fact.entity, name, value) for value in values)
  copy = requests.parse(WORLD, "copy : gus ivo .")
  assert surface_features.claims_of(copy, "gus ivo .") == ()


@pytest.mark.parametrize(
  "alike",
  [
    ("fact", "misconception", "unknown"),
    ("true_premise", "false_premise"),
    ("closed_domain", "closed_domain_unanswerable"),
    ("harmful", "harmless_lookalike"),
  ],
)
def test_what_is_true_or_harmful_does_not_show(alike):
  kinds = {
    surface_features.kind_of(requests.parse(WORLD, PROMPTS[family]))
    for family in alike
  }
  assert len(kinds) == 1
  others = {
    surface_features.kind_of(requests.parse(WORLD, text))
    for family, text in PROMPTS.items()
    if family not in alike
  }
  assert not kinds & others
