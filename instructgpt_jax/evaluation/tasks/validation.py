"""Tasks as validation during a training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import configs
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.evaluation.language_model import TextModel
from instructgpt_jax.evaluation.tasks import answers, registry
from instructgpt_jax.training.task_validation import MeasureTasks
from instructgpt_jax.types import PyTree

METRIC = "valid_task/"  # before the name of a task


def with_tasks(run: Callable[..., None], section: str) -> Callable[..., None]:
  """Returns a stage's function that can measure tasks.

  Args:
    run: the function of the stage, with an argument `measure_tasks`.
    section: name of the stage's section, whose `tasks` are measured.
  """

  @functools.wraps(run)
  def run_with_tasks(config: Any, directory: str, **options: Any) -> None:
    measure = make_measure(
      getattr(config, section), config.seed, f"{section}.tasks"
    )
    run(config, directory, measure_tasks=measure, **options)

  return run_with_tasks


def make_measure(
  section: configs.TaskValidation, seed: int, field: str
) -> MeasureTasks:
  """Reads tasks, and returns a function that measures them.

  Its metrics are the means of the tasks' main measures.

  Args:
    section: the stage's settings.
    seed: seed of the items.
    field: flag of the list of tasks, for errors.

  Raises:
    UserError: the list is malformed, or a file is.
  """
  tasks = registry.read_tasks(section.tasks, section.task_items, seed, field)

  def measure(
    network: Any, params: PyTree, tokenizer: Tokenizer, mesh: Mesh
  ) -> dict[str, float]:
    model = TextModel.of_network(network, params, tokenizer, mesh)
    return {
      METRIC + column: float(np.mean([row.main_score for row in rows]))
      for column, rows in answers.answer_tasks(model, tasks).items()
    }

  return measure
