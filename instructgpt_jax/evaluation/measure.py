"""Answers of a model to held-out prompts, judged and scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import configs, statistics
from instructgpt_jax.data import encoding, records
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.evaluation import judges
from instructgpt_jax.training import networks, sampling, scoring
from instructgpt_jax.training.stage_model import Stage
from instructgpt_jax.types import PyTree, Rollout


class Model(NamedTuple):
  """A network with its parameters."""

  network: Any
  params: PyTree


def load(stage: Stage, mesh: Mesh) -> Model:
  """A finished stage's model."""
  return Model(stage.network, networks.load_params(stage, mesh))


@dataclasses.dataclass
class Answers:
  """One model's answers to the test prompts at one temperature."""

  rollout: Rollout  # after the plain prompts
  texts: list[str]
  judged: judges.Judged
  rm: np.ndarray  # [R]
  kl: np.ndarray  # [R] log-ratio to the policy's start; its mean is a KL only
  # over answers that were sampled at temperature 1
  count: int  # answers a prompt

  def per_prompt(self, values: np.ndarray) -> np.ndarray:
    """[R] → [prompts, answers]."""
    return np.asarray(values, np.float64).reshape(-1, self.count)


@dataclasses.dataclass
class Evaluator:
  """What all models are measured with.

  Attributes:
    seed: of what is sampled.
    data: limits and tags of a prompt.
    settings: how much is measured.
    mesh: where batches are put.
    tokenizer: of all the models.
    start: the policy's start, to which KL is measured.
    reward: the reward model.
    judge: says how good an answer is.
    prompts: held out.
    told: called with the number of answers of each finished call.
  """

  seed: int
  data: configs.Data
  settings: configs.Evaluation
  mesh: Mesh
  tokenizer: Tokenizer
  start: Model
  reward: Model
  judge: judges.Judge
  prompts: Sequence[records.Prompt]
  told: Callable[[int], Any] | None = None

  def encode(self, prefix: str, prompts: Sequence[records.Prompt]):
    """Token ids of prompts behind a prefix; a long one loses the prefix."""
    turns = [p.turns for p in prompts]
    if prefix:
      turns = [
        encoding.with_instruction(prefix, t, self.tokenizer, self.data)
        for t in turns
      ]
    ids = encoding.encode_prompts(turns, self.tokenizer, self.data)
    context = self.start.network.config.max_seq_len
    room = context - self.data.max_response_tokens
    if prefix and max(map(len, ids)) > room:
      plain = self.encode("", prompts)
      ids = [
        a if len(a) <= room else b for a, b in zip(ids, plain, strict=True)
      ]
    return ids

  def sample(
    self,
    model: Model,
    prompts: Sequence[np.ndarray],
    *,
    temperature: float,
    samples: int,
    stream: int,
  ) -> Rollout:
    """Answers; each stream of keys is used once."""
    key = jax.random.fold_in(jax.random.key(self.seed), 2000 + stream)
    return sampling.respond(
      model.network,
      model.params,
      prompts,
      key,
      tokenizer=self.tokenizer,
      max_new_tokens=self.data.max_response_tokens,
      mesh=self.mesh,
      temperature=temperature,
      samples=samples,
      batch_size=self.settings.batch_size,
      on_progress=self.told,
    )

  def choose_prefix(
    self,
    model: Model,
    prefixes: Sequence[str],
    prompts: Sequence[records.Prompt],
  ) -> str:
    """The candidate whose answers the reward model likes best (App. B)."""
    plain = self.encode("", prompts)
    means = {}
    for i, prefix in enumerate(prefixes):
      rollout = self.sample(
        model,
        self.encode(prefix, prompts),
        temperature=1.0,
        samples=1,
        stream=i,
      )
      means[prefix] = self.rm_scores(
        sampling.with_prompts(rollout, plain, self.tokenizer)
      ).mean()
    return max(means, key=lambda prefix: means[prefix])

  def rm_scores(self, rollout: Rollout) -> np.ndarray:
    """[R] scores of the reward model."""
    return scoring.score(*self.reward, scoring.answers(rollout), self.mesh)

  def answers(
    self,
    model: Model,
    *,
    prefix: str = "",
    temperature: float,
    samples: int,
    stream: int,
  ) -> Answers:
    """Samples, judges and scores answers to the test prompts."""
    rollout = self.sample(
      model,
      self.encode(prefix, self.prompts),
      temperature=temperature,
      samples=samples,
      stream=stream,
    )
    own = recorded(rollout)
    if prefix:
      plain = self.encode("", self.prompts)
      rollout = sampling.with_prompts(
        rollout, [ids for ids in plain for _ in range(samples)], self.tokenizer
      )
    return self.judged(rollout, own, samples)

  def judged(self, rollout: Rollout, own: np.ndarray, count: int) -> Answers:
    """Answers that were sampled already.

    Args:
      rollout: after the plain prompts, `count` answers each.
      own: [R] log-probability under the model that gave them.
      count: answers a prompt.
    """
    start = scoring.log_likelihood(
      *self.start, scoring.answers(rollout), self.mesh
    )
    texts = sampling.texts(rollout, self.tokenizer)
    asked = [p.turns[-1].text for p in self.prompts for _ in range(count)]
    return Answers(
      rollout,
      texts,
      self.judge(asked, texts, rollout),
      self.rm_scores(rollout),
      own - start,
      count,
    )

  def best_of_n(self, model: Model, stream: int) -> Answers:
    """For each prompt, the best of n answers by the reward model, once.

    KL(best ‖ start) = KL(best ‖ model), which is at most ln n − (n − 1)/n, +
    the mean of log model − log start over the chosen answers.
    """
    n = self.settings.best_of_n
    drawn = self.sample(
      model,
      self.encode("", self.prompts),
      temperature=1.0,
      samples=n,
      stream=stream,
    )
    scores = self.rm_scores(drawn).reshape(-1, n)
    best = scores.argmax(axis=1) + n * np.arange(len(scores))
    rollout = jax.tree.map(lambda x: x[best], drawn)
    own = recorded(rollout) + statistics.best_of_n_kl(n)
    return self.judged(rollout, own, 1)


def recorded(rollout: Rollout) -> np.ndarray:
  """[R] float64 log-probability at temperature 1 that sampling recorded."""
  return np.where(rollout.response_mask, rollout.logp, 0.0).sum(axis=1)
