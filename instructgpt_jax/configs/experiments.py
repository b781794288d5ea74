"""Configs of whole experiments, one for each program in `experiments/`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from instructgpt_jax.configs.data import Data, Tokenizer
from instructgpt_jax.configs.evaluation import (
  Evaluation,
  Labeling,
  Measure,
  Pairs,
  PipelineEvaluation,
  PipelineLabeling,
  World,
)
from instructgpt_jax.configs.fields import Checked, option, options
from instructgpt_jax.configs.model import Model
from instructgpt_jax.configs.optimizer import Optimizer
from instructgpt_jax.configs.run import Mesh, Processes, Run
from instructgpt_jax.configs.stages import (
  PPO_OPTIMIZER,
  VALUE_OPTIMIZER,
  Ppo,
  PpoPtxStage,
  PpoStage,
  Pretrain,
  PretrainStage,
  Reward,
  RewardInitStage,
  RewardStage,
  Sft,
  SftStage,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Checked):
  """Config that every experiment has."""

  seed: int = option(0, "Seed for all randomness.", minimum=0)
  init_from: str = option(
    "",
    "Workdir of an earlier stage, or Hugging Face directory, to start from.",
  )
  model: Model = Model()
  tokenizer: Tokenizer = Tokenizer()
  data: Data = Data()
  mesh: Mesh = Mesh()
  processes: Processes = Processes()
  run: Run = Run()

  def is_explicit(self, name: str) -> bool:
    """Returns whether the user has set a field, by its dotted name."""
    return self.data.is_explicit(name.removeprefix("data."))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainExperiment(Experiment):
  """Config of `pretrain`."""

  pretrain: Pretrain = Pretrain()
  optimizer: Optimizer = Optimizer(
    learning_rate=2e-4, weight_decay=0.1, warmup_steps=100
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftExperiment(Experiment):
  """Config of `sft` and `policy_init`."""

  sft: Sft = Sft()
  optimizer: Optimizer = Optimizer()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardExperiment(Experiment):
  """Config of `reward`."""

  reward: Reward = Reward()
  optimizer: Optimizer = Optimizer(learning_rate=9e-6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoExperiment(Experiment):
  """Config of `ppo` (γ = 0) and `ppo_ptx`."""

  ppo: Ppo = Ppo()
  optimizer: Optimizer = PPO_OPTIMIZER
  value_optimizer: Optimizer = VALUE_OPTIMIZER

  @property
  def ptx_length(self) -> int:
    """Length of pretraining rows, in tokens."""
    return self.ppo.ptx_sequence or self.model.max_seq_len

  @property
  def resolved_optimizers(self) -> tuple[Optimizer, Optimizer]:
    """Optimizers of policy and value network, with their warm-up in updates.

    A warmup_steps of -1 becomes ppo.warmup_iterations times the updates of an
    iteration.
    """
    steps = self.ppo.warmup_iterations * self.ppo.updates_per_iteration

    def resolve(optimizer: Optimizer) -> Optimizer:
      if optimizer.warmup_steps >= 0:
        return optimizer
      return dataclasses.replace(optimizer, warmup_steps=steps)

    return resolve(self.optimizer), resolve(self.value_optimizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateExperiment(Experiment):
  """Config of `evaluate`, which measures the model of `init_from`."""

  measure: Measure = Measure()
  evaluation: Evaluation = Evaluation()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelsExperiment(Experiment):
  """Config of `labels`, which ranks answers of a pipeline's models."""

  pipeline: str = option(
    "", "Workdir of a pipeline on the embedded world, whose models answer."
  )
  labeling: Labeling = Labeling()
  evaluation: Evaluation = Evaluation()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsExperiment(Experiment):
  """Config of `reward_pairs`, which measures the model of `init_from`."""

  pairs: Pairs = Pairs()
  reward: Reward = Reward()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineExperiment(Experiment):
  """Config of `pipeline`: all stages in order, then the report."""

  until: Literal["world", "pretrain", "policy_init", "reward", "sft"] | None = (
    option(None, "Stop after this stage; the same command without it resumes.")
  )
  world: World = World()
  pretrain: PretrainStage = PretrainStage()
  sft: SftStage = SftStage()
  policy_init: SftStage = SftStage(
    epochs=2,
    pretraining_fraction=0.1,
    optimizer=Optimizer(learning_rate=5e-6),
  )
  labeling: PipelineLabeling = PipelineLabeling()
  reward_init: RewardInitStage = RewardInitStage()
  reward: RewardStage = RewardStage()
  ppo: PpoStage = PpoStage()
  ppo_ptx: PpoPtxStage = PpoPtxStage()
  evaluation: PipelineEvaluation = PipelineEvaluation()

  @property
  def has_public_comparisons(self) -> bool:
    """Whether reward models start from public comparisons."""
    in_world = not self.data.demonstrations
    written = in_world and self.world.public_comparisons
    return bool(self.reward_init.comparisons or written)


def experiment_field(name: str, experiment: str) -> str | None:
  """Returns the name of a pipeline's field in one experiment.

  Args:
    name: such as sft.optimizer.b1, or policy_init.epochs.
    experiment: such as sft, or policy_init.

  Returns:
    Such as optimizer.b1, or sft.epochs. None for a field that the experiment
    does not have.
  """
  head, _, rest = name.partition(".")
  if head in ("model", "tokenizer", "data", "mesh", "run"):
    return name
  if rest == "init_from" or rest.startswith("optimizer."):
    return rest if head == experiment else None
  if head == "evaluation" and rest in ("tasks", "task_items"):
    return f"measure.{rest}" if experiment == "evaluate" else None
  stage = {
    "ppo_ptx": "ppo",
    "evaluate": "evaluation",
    "labels": "labeling",
    "reward_pairs": "reward",
  }
  if head != stage.get(experiment, experiment):
    return None
  if experiment == "labels" and rest not in options(Labeling):
    return None
  if rest.startswith("value_optimizer."):
    return rest
  section = {"policy_init": "sft", "reward_init": "reward"}.get(head, head)
  return f"{section}.{rest}"
