"""Configs of whole experiments, one for each program in `experiments/`."""

from __future__ import annotations

import dataclasses

from instructgpt_jax.configs.data import Data, Tokenizer
from instructgpt_jax.configs.evaluation import (
  Evaluation,
  Labeling,
  Measure,
  World,
)
from instructgpt_jax.configs.fields import Checked, option
from instructgpt_jax.configs.model import Model
from instructgpt_jax.configs.optimizer import Optimizer
from instructgpt_jax.configs.run import Mesh, Processes, Run
from instructgpt_jax.configs.stages import Ppo, Pretrain, Reward, Sft


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Checked):
  """What every experiment has."""

  seed: int = option(0, "of everything random", minimum=0)
  init_from: str = option(
    "", "workdir of an earlier stage, or Hugging Face directory, to start from"
  )
  model: Model = Model()
  tokenizer: Tokenizer = Tokenizer()
  data: Data = Data()
  mesh: Mesh = Mesh()
  processes: Processes = Processes()
  run: Run = Run()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainExperiment(Experiment):
  pretrain: Pretrain = Pretrain()
  optimizer: Optimizer = Optimizer(
    learning_rate=2e-4, weight_decay=0.1, warmup_steps=100
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftExperiment(Experiment):
  """`sft` and `policy_init`."""

  sft: Sft = Sft()
  optimizer: Optimizer = Optimizer()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardExperiment(Experiment):
  reward: Reward = Reward()
  optimizer: Optimizer = Optimizer(learning_rate=9e-6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoExperiment(Experiment):
  """`ppo` (γ = 0) and `ppo_ptx`."""

  ppo: Ppo = Ppo()
  optimizer: Optimizer = Optimizer(
    learning_rate=1.18e-5,
    schedule="constant",
    warmup_steps=-1,
    warmup_init=0.1,
  )
  value_optimizer: Optimizer = Optimizer(
    learning_rate=9e-6,
    schedule="constant",
    warmup_steps=-1,
    warmup_init=0.1,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateExperiment(Experiment):
  """`evaluate`: the model of `init_from` on held-out prompts."""

  measure: Measure = Measure()
  evaluation: Evaluation = Evaluation()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineExperiment(Experiment):
  """All stages in order, then the report."""

  until: str = option(
    "",
    "stops after this stage; the same command without it goes on",
    choices=("", "world", "pretrain", "policy_init", "reward", "sft"),
  )
  world: World = World()
  pretrain: Pretrain = Pretrain()
  pretrain_optimizer: Optimizer = Optimizer(
    learning_rate=2e-4, weight_decay=0.1, warmup_steps=100
  )
  sft: Sft = Sft()
  sft_optimizer: Optimizer = Optimizer()
  policy_init: Sft = Sft(epochs=2, pretraining_fraction=0.1)
  policy_init_optimizer: Optimizer = Optimizer(learning_rate=5e-6)
  labeling: Labeling = Labeling()
  reward: Reward = Reward()
  reward_optimizer: Optimizer = Optimizer(learning_rate=9e-6)
  ppo: Ppo = Ppo()
  ppo_optimizer: Optimizer = PpoExperiment.optimizer
  ptx_optimizer: Optimizer = PpoExperiment.optimizer
  value_optimizer: Optimizer = PpoExperiment.value_optimizer
  evaluation: Evaluation = Evaluation()
