"""Simulates labelers: they read the gold label with noise and with a taste."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from instructgpt_jax.errors import UserError
from instructgpt_jax.world.facts import World
from instructgpt_jax.world.gold import Label, label

# Standard deviation of a labeler's Likert rating; gives the paper's agreement.
NOISE = 2.75


@dataclasses.dataclass(frozen=True)
class Labeler:
  """A labeler's taste: corrections of the gold score, in Likert points.

  `brevity` is subtracted for every token beyond the answer, `politeness` for an
  insult and `honesty` for an invented statement. `lenience` is added to every
  rating.
  """

  name: str
  brevity: float = 0.0
  politeness: float = 0.0
  honesty: float = 0.0
  lenience: float = 0.0
  held_out: bool = False


LABELERS = {
  labeler.name: labeler
  for labeler in (
    Labeler("labeler_a"),
    Labeler("labeler_b", brevity=0.05, lenience=0.3),
    Labeler("labeler_c", honesty=0.4),
    Labeler("labeler_d", politeness=0.5, lenience=-0.3),
    Labeler("labeler_e", brevity=-0.05, honesty=-0.2),
    Labeler("held_out_a", brevity=0.25, held_out=True),
    Labeler("held_out_b", politeness=1.5, honesty=-0.8, held_out=True),
    Labeler("held_out_c", honesty=1.5, brevity=-0.15, held_out=True),
  )
}
TRAINING = tuple(n for n, one in LABELERS.items() if not one.held_out)
HELD_OUT = tuple(n for n, one in LABELERS.items() if one.held_out)


def taste(labeler: Labeler, form: Label) -> float:
  """Computes the Likert score that a labeler means, before noise."""
  return (
    form.likert
    + labeler.lenience
    - labeler.brevity * min(form.fillers, 10)
    - labeler.politeness * form.failures["denigrates"]
    - labeler.honesty * form.failures["hallucination"]
  )


def rate(
  form: Label, labeler_id: str, rng: random.Random, *, noise: float = NOISE
) -> int:
  """Draws a labeler's Likert rating of one reply, 1 to 7."""
  if labeler_id not in LABELERS:
    raise UserError(
      f"there is no labeler {labeler_id!r}",
      fix="give one of " + ", ".join(LABELERS),
      code="unknown_labeler",
    )
  meant = taste(LABELERS[labeler_id], form)
  return min(7, max(1, round(meant + rng.gauss(0.0, noise))))


def to_ranks(ratings: Sequence[float]) -> list[int]:
  """Converts ratings to ranks: 1 for the best; equal ratings share a rank."""
  order = sorted(set(ratings), reverse=True)
  return [order.index(rating) + 1 for rating in ratings]


def rank(
  prompt: str,
  completions: Sequence[str],
  ended: Sequence[bool] | None = None,
  *,
  labeler_id: str,
  rng: random.Random,
  world: World | int = 0,
  noise: float = NOISE,
) -> list[int]:
  """Draws a labeler's ranks of several completions of one prompt.

  Args:
    prompt: a world prompt, without tags.
    completions: K replies; equal ones get equal ranks.
    ended: whether each ended with end-of-text; all did by default.
    labeler_id: one of `LABELERS`.
    rng: the labeler's noise.
    world: the world, or its seed.
    noise: standard deviation in Likert points.

  Returns:
    K ranks, 1 best, ties allowed.
  """
  return to_ranks(
    rate_all(
      prompt,
      completions,
      ended,
      labeler_id=labeler_id,
      rng=rng,
      world=world,
      noise=noise,
    )
  )


def rate_all(
  prompt: str,
  completions: Sequence[str],
  ended: Sequence[bool] | None = None,
  *,
  labeler_id: str,
  rng: random.Random,
  world: World | int = 0,
  noise: float = NOISE,
) -> list[int]:
  """Draws a labeler's ratings of several completions of one prompt, 1 to 7.

  Args:
    prompt: see `rank`; the other arguments likewise.
    completions: K replies; equal ones get equal ratings.
    ended: see `rank`.
    labeler_id: see `rank`.
    rng: see `rank`.
    world: see `rank`.
    noise: see `rank`.
  """
  ended = [True] * len(completions) if ended is None else ended
  replies = list(zip(completions, ended, strict=True))
  ratings: dict[tuple[str, bool], int] = {}
  for reply in replies:
    if reply not in ratings:
      form = label(prompt, *reply, world=world)
      ratings[reply] = rate(form, labeler_id, rng, noise=noise)
  return [ratings[reply] for reply in replies]
