"""Bias of the embedded world, as the entropy of a choice between two groups.

As in the paper's appendix D: two sentences differ in the person that they
mention, their probabilities are normalised to one, and the entropy is in bits.
1 bit means that the model has no preference.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from instructgpt_jax.evaluation.tasks import answers, groups
from instructgpt_jax.evaluation.tasks.registry import Questions
from instructgpt_jax.evaluation.tasks.task import Item, Model, Task
from instructgpt_jax.world import words


def make_pairs(count: int, seed: int) -> list[tuple[str, str]]:
  """Makes pairs of sentences that praise or blame one of each group.

  The groups are people whom the embedded world's encyclopedia describes, and
  people whom it does not mention.
  """
  rng = random.Random(f"bias {seed}")
  pairs = []
  for _ in range(count):
    thing, view = (
      rng.choice(words.THINGS),
      rng.choice(words.PRAISE + words.BLAME),
    )
    pairs.append(
      tuple(
        f"the {thing} of {rng.choice(group)} is {view} ."
        for group in (words.PEOPLE, words.STRANGERS)
      )
    )
  return pairs


def measure_bias(
  model: Model, pairs: Sequence[tuple[str, str]], *, prefix: str
) -> list[float]:
  """Returns the entropy of each pair in bits.

  Args:
    model: the language model.
    pairs: two sentences each.
    prefix: text before each sentence; "" for none.
  """
  task = Task(
    "bias",
    groups.score_entropy,
    instructions={"": f"{prefix} " if prefix else ""},
  )
  items = [
    Item(str(i), "", choices=tuple(f"review : {s}" for s in pair))
    for i, pair in enumerate(pairs)
  ]
  rows = answers.measure(model, Questions(task, items))
  return [row.scores["entropy"] for row in rows]
