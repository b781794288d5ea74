"""Answers to held-out prompts during a training, and their scores.

The answers follow from the parameters and from a random key of their own. So a
run trains on the same numbers with them as without, and a resumed run repeats
them bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import configs
from instructgpt_jax.data import encoding
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.models.sampling import SamplingParams
from instructgpt_jax.steps import reward_ensemble
from instructgpt_jax.training import inputs, networks, sampling, scoring
from instructgpt_jax.training.stage_model import Stage
from instructgpt_jax.types import Array, PyTree

_STREAM = 3000  # folded into the seed; evaluations use 2000 and above


class Prompts(NamedTuple):
  """Held-out prompts."""

  ids: list[np.ndarray]  # token ids of each
  texts: list[str]  # with template and special tokens


class Scorer(NamedTuple):
  """A reward model that scores answers, or an ensemble of several."""

  networks: tuple[ScalarModel, ...]
  params: tuple[PyTree, ...]
  settings: configs.RewardModels  # how the scores of several are combined

  def score(
    self, examples: Sequence[scoring.Example], mesh: Mesh
  ) -> np.ndarray:
    """Scores each example at its last token, [R] float32."""
    scores = [
      scoring.score(network, params, examples, mesh)
      for network, params in zip(self.networks, self.params, strict=True)
    ]
    return np.asarray(
      reward_ensemble.combine_scores(np.stack(scores), self.settings)
    )


def load_scorer(
  stages: Sequence[Stage],
  mesh: Mesh,
  settings: configs.RewardModels | None = None,
) -> Scorer:
  """Loads reward models.

  Args:
    stages: the reward models, one or several.
    mesh: mesh that their parameters are sharded over.
    settings: how the scores of several are combined.
  """
  return Scorer(
    tuple(stage.network for stage in stages),
    tuple(networks.load_params(stage, mesh) for stage in stages),
    settings or configs.RewardModels(),
  )


class Answers(NamedTuple):
  """A policy's answers; R is prompts · samples.

  A prompt's answers follow each other.
  """

  prompts: list[str]  # R
  texts: list[str]  # R
  lengths: np.ndarray  # [R] int, tokens with the one that ends it
  ended: np.ndarray  # [R] bool, False at the length limit
  scores: dict[str, np.ndarray]  # name of a scorer → [R]
  kl: np.ndarray | None  # [R] log-ratio to the reference; None without one


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Prompts that a policy answers, and what scores its answers.

  Attributes:
    network: the policy.
    prompts: the prompts.
    tokenizer: the run's tokenizer.
    sampling: how answers are sampled.
    mesh: mesh that batches are put on.
    seed: seed of the run.
    scorers: reward models by name.
    reference: parameters of the policy's reference, if it has one.
  """

  network: LanguageModel
  prompts: Prompts
  tokenizer: Tokenizer
  sampling: SamplingParams
  mesh: Mesh
  seed: int
  scorers: Mapping[str, Scorer] = dataclasses.field(default_factory=dict)
  reference: PyTree | None = None

  @property
  def key(self) -> Array:
    """The random key of the answers, the same at every step."""
    return jax.random.fold_in(jax.random.key(self.seed), _STREAM)

  def answer(self, params: PyTree) -> Answers:
    """Samples and scores answers.

    Args:
      params: all parameters of the policy.
    """
    rollout = sampling.respond(
      self.network,
      params,
      self.prompts.ids,
      self.key,
      sampling=self.sampling,
      mesh=self.mesh,
    )
    examples = scoring.answers(rollout)
    return Answers(
      prompts=[
        text
        for text in self.prompts.texts
        for _ in range(self.sampling.samples)
      ],
      texts=sampling.texts(rollout, self.tokenizer),
      lengths=np.asarray(rollout.response_mask).sum(axis=1),
      ended=np.asarray(rollout.ended),
      scores={
        name: scorer.score(examples, self.mesh)
        for name, scorer in self.scorers.items()
      },
      kl=self._log_ratio(params, examples),
    )

  def _log_ratio(
    self, params: PyTree, examples: Sequence[scoring.Example]
  ) -> np.ndarray | None:
    """Computes log π − log π_ref of each answer at temperature 1.

    Over answers that are sampled at temperature 1 its mean estimates the KL
    divergence.
    """
    if self.reference is None:
      return None
    logp, ref_logp = (
      scoring.log_likelihood(self.network, p, examples, self.mesh)
      for p in (params, self.reference)
    )
    return logp - ref_logp


def choose_prompts(
  records: Sequence[Any],
  count: int,
  config: configs.Experiment,
  tokenizer: Tokenizer,
  field: str,
) -> Prompts:
  """Draws validation prompts by a hash of their text.

  Args:
    records: validation records with `turns`.
    count: number of prompts to draw; all if there are fewer.
    config: the experiment; its seed and data section are used.
    tokenizer: the run's tokenizer.
    field: the setting that asks for them, for the error.

  Raises:
    UserError: `no_validation`, there is no validation record.
  """
  if not records:
    raise UserError(
      "needs validation prompts, and there are none",
      field=field,
      fix='raise --data.valid_fraction, or mark records with "split": "valid"',
      code="no_validation",
    )
  chosen = inputs.draw(records, count, f"held out {config.seed}")
  ids = encoding.encode_prompts(
    [record.turns for record in chosen], tokenizer, config.data
  )
  return Prompts(ids, [tokenizer.decode_with_special(row) for row in ids])
