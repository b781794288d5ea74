"""Public tasks during a training.

`evaluation` has the tasks and is above this package, so the program that starts
a stage passes a function that measures them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from instructgpt_jax import configs
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.types import PyTree

# (network, all parameters, tokenizer, mesh) → metrics.
MeasureTasks = Callable[[Any, PyTree, Tokenizer, Mesh], Mapping[str, float]]


class TaskLoop(NamedTuple):
  """Measurements of tasks during a training.

  Attributes:
    measure: trained parameters → metrics.
    every: steps, or iterations, between two measurements; None measures before
      the first one and at the end only.
  """

  measure: Callable[[PyTree], Mapping[str, float]]
  every: int | None

  def is_due(self, count: int, *, last: bool) -> bool:
    """Returns whether the tasks are measured after `count` steps."""
    if last or not count:
      return True
    return self.every is not None and count % self.every == 0


def make_loop(
  section: configs.TaskValidation,
  measure: MeasureTasks | None,
  network: Any,
  all_params: Callable[[PyTree], PyTree],
  tokenizer: Tokenizer,
  mesh: Mesh,
) -> TaskLoop | None:
  """Makes the measurements of a run; None if it names no tasks.

  Args:
    section: the stage's settings.
    measure: measures the tasks of `section`.
    network: the network in training.
    all_params: trained parameters → all parameters of the network.
    tokenizer: its tokenizer.
    mesh: mesh that the parameters are on.
  """
  if not section.tasks:
    return None
  if measure is None:
    raise ValueError("this program passes no function that measures tasks")
  return TaskLoop(
    lambda params: measure(network, all_params(params), tokenizer, mesh),
    section.tasks_every,
  )
