"""Typed configs: frozen dataclasses whose defaults are the paper's numbers.

Every field carries its help text, unit, paper section and allowed range, which
`flags` turns into an absl flag. [P], [C], [D] and [I] mean: printed in the
paper, from another source, our arithmetic, our inference. Nothing here reads a
file or a clock.
"""

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
from instructgpt_jax.configs.experiments import (
  EvaluateExperiment,
  Experiment,
  LabelsExperiment,
  PairsExperiment,
  PipelineExperiment,
  PpoExperiment,
  PretrainExperiment,
  RewardExperiment,
  SftExperiment,
  experiment_field,
)
from instructgpt_jax.configs.fields import (
  Checked,
  Option,
  nearest,
  option,
  options,
)
from instructgpt_jax.configs.model import Model
from instructgpt_jax.configs.optimizer import Optimizer
from instructgpt_jax.configs.run import Mesh, Processes, Run
from instructgpt_jax.configs.stages import (
  Ppo,
  PpoPtxStage,
  PpoStage,
  Pretrain,
  PretrainStage,
  Reward,
  RewardInitStage,
  RewardModels,
  RewardStage,
  Sft,
  SftStage,
  TaskValidation,
)

__all__ = [
  "Checked",
  "Data",
  "EvaluateExperiment",
  "Evaluation",
  "Experiment",
  "Labeling",
  "LabelsExperiment",
  "Measure",
  "Mesh",
  "Model",
  "Optimizer",
  "Option",
  "Pairs",
  "PairsExperiment",
  "PipelineEvaluation",
  "PipelineExperiment",
  "PipelineLabeling",
  "Ppo",
  "RewardModels",
  "PpoExperiment",
  "PpoPtxStage",
  "PpoStage",
  "Pretrain",
  "PretrainExperiment",
  "PretrainStage",
  "Processes",
  "Reward",
  "RewardExperiment",
  "RewardInitStage",
  "RewardStage",
  "Run",
  "Sft",
  "SftExperiment",
  "SftStage",
  "TaskValidation",
  "Tokenizer",
  "World",
  "experiment_field",
  "nearest",
  "option",
  "options",
]
