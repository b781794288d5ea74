"""Samples a model's answers to held-out prompts, judges and scores them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import configs, statistics
from instructgpt_jax.data import encoding, packing, records
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.evaluation import judges
from instructgpt_jax.evaluation.language_model import TextModel
from instructgpt_jax.evaluation.tasks import answers as task_answers
from instructgpt_jax.evaluation.tasks import registry
from instructgpt_jax.training import networks, sampling, scoring
from instructgpt_jax.training.held_out import Scorer
from instructgpt_jax.training.stage_model import Stage
from instructgpt_jax.types import PyTree, Rollout
from instructgpt_jax.world.facts import World


class Model(NamedTuple):
  """A network with its parameters."""

  network: Any
  params: PyTree


def load_model(stage: Stage, mesh: Mesh) -> Model:
  """Loads the model of a finished stage."""
  return Model(stage.network, networks.load_params(stage, mesh))


@dataclasses.dataclass
class Answers:
  """One model's answers to the held-out prompts at one temperature.

  R is prompts · samples; answers to the same prompt are adjacent.

  Attributes:
    rollout: the answers after the prompts without prefix.
    texts: [R] decoded answers.
    judgement: the judge's scores.
    rm_scores: [R] scores of the reward model.
    kl: [R] log-ratio to the policy's initialisation. Its mean estimates the KL
      only over answers sampled at temperature 1.
    samples: answers per prompt.
  """

  rollout: Rollout
  texts: list[str]
  judgement: judges.Judgement
  rm_scores: np.ndarray
  kl: np.ndarray
  samples: int

  def group_by_prompt(self, values: np.ndarray) -> np.ndarray:
    """Reshapes [R] values to [prompts, samples], in float64."""
    return np.asarray(values, np.float64).reshape(-1, self.samples)


@dataclasses.dataclass
class Evaluator:
  """What every model of a run is measured with.

  Attributes:
    seed: seed of the sampling.
    data: limits and tags of prompts.
    settings: size of the evaluation.
    mesh: mesh that batches are put on.
    tokenizer: tokenizer of all models.
    start: the policy's initialisation, the reference of the KL.
    reward: the reward model, or an ensemble of several.
    judge: scores each answer.
    prompts: held-out prompts.
    prefix_prompts: prompts that a prefix is chosen on.
    prefixes: candidate prefixes of the prompted baseline.
    documents: packed rows of held-out documents; None to skip the LM loss.
    tasks: public tasks with their items.
    world: the embedded world, if the prompts come from it.
    on_progress: called with the number of answers of each finished batch.
  """

  seed: int
  data: configs.Data
  settings: configs.Evaluation
  mesh: Mesh
  tokenizer: Tokenizer
  start: Model
  reward: Scorer
  judge: judges.Judge
  prompts: Sequence[records.Prompt]
  prefix_prompts: Sequence[records.Prompt] = ()
  prefixes: Sequence[str] = ()
  documents: packing.Rows | None = None
  tasks: Sequence[registry.Questions] = ()
  world: World | None = None
  on_progress: Callable[[int], Any] | None = None

  def encode(self, prefix: str, prompts: Sequence[records.Prompt]):
    """Encodes prompts with a prefix, which prompts that are too long omit."""
    turns = [p.turns for p in prompts]
    if prefix:
      turns = [
        encoding.with_instruction(prefix, t, self.tokenizer, self.data)
        for t in turns
      ]
    ids = encoding.encode_prompts(turns, self.tokenizer, self.data)
    max_prompt_len = (
      self.start.network.config.max_seq_len - self.data.max_response_tokens
    )
    if prefix and max(map(len, ids)) > max_prompt_len:
      plain = self.encode("", prompts)
      ids = [
        a if len(a) <= max_prompt_len else b
        for a, b in zip(ids, plain, strict=True)
      ]
    return ids

  def prompt_texts(
    self, prefix: str, prompts: Sequence[records.Prompt]
  ) -> list[str]:
    """Returns encoded prompts as text, with template and special tokens."""
    return [
      self.tokenizer.decode_with_special(ids)
      for ids in self.encode(prefix, prompts)
    ]

  def sample(
    self,
    model: Model,
    prompts: Sequence[np.ndarray],
    *,
    temperature: float,
    samples: int,
    stream: int,
  ) -> Rollout:
    """Samples answers.

    Args:
      model: the model.
      prompts: token ids of each prompt.
      temperature: sampling temperature; 0 is greedy.
      samples: answers per prompt.
      stream: number of the random stream; use each one once.
    """
    key = jax.random.fold_in(jax.random.key(self.seed), 2000 + stream)
    return sampling.respond(
      model.network,
      model.params,
      prompts,
      key,
      sampling=sampling.sampling_params(
        self.tokenizer,
        max_new_tokens=self.data.max_response_tokens,
        temperature=temperature,
        samples=samples,
        batch_size=self.settings.batch_size,
      ),
      mesh=self.mesh,
      on_progress=self.on_progress,
    )

  def choose_prefix(self, model: Model) -> str:
    """Chooses the prefix with the highest mean reward-model score (App. B)."""
    plain = self.encode("", self.prefix_prompts)
    means = {}
    for i, prefix in enumerate(self.prefixes):
      rollout = self.sample(
        model,
        self.encode(prefix, self.prefix_prompts),
        temperature=1.0,
        samples=1,
        stream=i,
      )
      means[prefix] = self.score_by_reward_model(
        sampling.with_prompts(rollout, plain, self.tokenizer)
      ).mean()
    return max(means, key=lambda prefix: means[prefix])

  def score_by_reward_model(self, rollout: Rollout) -> np.ndarray:
    """Returns [R] scores of the reward model."""
    return self.reward.score(scoring.answers(rollout), self.mesh)

  def answer(
    self,
    model: Model,
    *,
    prefix: str = "",
    temperature: float,
    samples: int,
    stream: int,
  ) -> Answers:
    """Samples, judges and scores answers to the held-out prompts.

    Args:
      model: the model.
      prefix: text before each prompt.
      temperature: see `sample`.
      samples: see `sample`.
      stream: see `sample`.
    """
    rollout = self.sample(
      model,
      self.encode(prefix, self.prompts),
      temperature=temperature,
      samples=samples,
      stream=stream,
    )
    logp = recorded_logp(rollout)
    if prefix:
      plain = self.encode("", self.prompts)
      rollout = sampling.with_prompts(
        rollout, [ids for ids in plain for _ in range(samples)], self.tokenizer
      )
    return self.judge_rollout(rollout, logp, samples)

  def judge_rollout(
    self, rollout: Rollout, logp: np.ndarray, samples: int
  ) -> Answers:
    """Judges and scores answers that were sampled before.

    Args:
      rollout: the answers, after the prompts without prefix.
      logp: [R] log-probability of each answer under the model that sampled it.
      samples: answers per prompt.
    """
    start_logp = scoring.log_likelihood(
      *self.start, scoring.answers(rollout), self.mesh
    )
    texts = sampling.texts(rollout, self.tokenizer)
    prompts = [p.turns[-1].text for p in self.prompts for _ in range(samples)]
    return Answers(
      rollout=rollout,
      texts=texts,
      judgement=self.judge(prompts, texts, rollout),
      rm_scores=self.score_by_reward_model(rollout),
      kl=logp - start_logp,
      samples=samples,
    )

  def best_of_n(self, model: Model, stream: int) -> Answers:
    """Answers each prompt with the best of n samples by the reward model.

    KL(best ‖ start) = KL(best ‖ model), which is at most ln n − (n − 1)/n, +
    the mean of log model − log start over the chosen answers.
    """
    n = self.settings.best_of_n
    sampled = self.sample(
      model,
      self.encode("", self.prompts),
      temperature=1.0,
      samples=n,
      stream=stream,
    )
    scores = self.score_by_reward_model(sampled).reshape(-1, n)
    best = scores.argmax(axis=1) + n * np.arange(len(scores))
    rollout = jax.tree.map(lambda x: x[best], sampled)
    logp = recorded_logp(rollout) + statistics.best_of_n_kl(n)
    return self.judge_rollout(rollout, logp, 1)

  def text_model(self, model: Model) -> TextModel:
    """Returns a model that scores and continues texts."""
    return TextModel.of_network(
      *model, self.tokenizer, self.mesh, batch_size=self.settings.batch_size
    )

  def answer_tasks(self, model: Model) -> dict[str, list[task_answers.Row]]:
    """Returns the answered items of each task; see `answers.answer_tasks`."""
    return task_answers.answer_tasks(self.text_model(model), self.tasks)


def recorded_logp(rollout: Rollout) -> np.ndarray:
  """Returns [R] float64 log-probabilities at temperature 1, from sampling."""
  return np.where(rollout.response_mask, rollout.logp, 0.0).sum(axis=1)
