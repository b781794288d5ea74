"""Held-out evaluations and samples of PPO, and the policy that they choose.

Both measure the policy that the run would save: the average of the weights, if
`ppo.ema_decay` averages them. They run after an iteration where they are due,
and once before the first update.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.models import lora
from instructgpt_jax.runs.metrics import MetricWriter
from instructgpt_jax.steps.state import PpoState
from instructgpt_jax.training import (
  held_out,
  samples,
  sampling,
  task_validation,
)
from instructgpt_jax.training.held_out import Answers, HeldOut, Scorer
from instructgpt_jax.training.ppo_setup import PpoRun
from instructgpt_jax.types import PyTree


class Loops(NamedTuple):
  """What a run measures on held-out prompts."""

  evaluation: HeldOut | None
  samples: samples.SampleLoop | None
  tasks: task_validation.TaskLoop | None


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """Held-out evaluations up to now.

  Attributes:
    metrics: metrics of the last one.
    step: its number of updates; -1 without one.
    best: score, step and metric of the best one by `run.keep_best`.
  """

  metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
  step: int = -1
  best: dict[str, Any] | None = None

  def metrics_at(self, step: int) -> Mapping[str, float]:
    """Returns the metrics of a number of updates, if these are the last."""
    return self.metrics if self.step == step else {}

  def chosen(self, settings: configs.Run) -> dict[str, Any] | None:
    """Returns the best evaluation, if `run.keep_best` chooses the policy."""
    if self.best is None or self.best["metric"] != settings.keep_best:
      return None
    return self.best


def make_loops(
  run: PpoRun, measure_tasks: task_validation.MeasureTasks | None = None
) -> Loops:
  """Makes the evaluation, samples and tasks of a run, where it has them.

  Args:
    run: the run.
    measure_tasks: measures the tasks of `ppo.tasks`.

  Raises:
    UserError: `no_validation`, there are no validation prompts.
  """
  section, evaluation, sample_loop = run.config.ppo, None, None
  if section.eval_every:
    evaluation = _make_held_out(
      run, section.eval_prompts, section.eval_samples, "ppo.eval_every"
    )
  if section.samples_every:
    answering = _make_held_out(
      run, section.sample_prompts, 1, "ppo.samples_every"
    )
    sample_loop = samples.SampleLoop(
      lambda params: answering.answer(_all_params(run, params)),
      section.samples_every,
    )
  tasks = task_validation.make_loop(
    section,
    measure_tasks,
    run.networks.policy,
    lambda params: _all_params(run, params),
    run.start.stage.tokenizer,
    run.mesh,
  )
  return Loops(evaluation, sample_loop, tasks)


def _make_held_out(
  run: PpoRun, num_prompts: int, samples_per_prompt: int, field: str
) -> HeldOut:
  """Draws validation prompts, and gathers what answers and scores them."""
  config, tokenizer = run.config, run.start.stage.tokenizer
  scorers = {
    "reward": Scorer(run.networks.rewards, run.frozen["reward"], config.ppo)
  }
  if run.judge is not None:
    scorers["judge"] = run.judge
  return HeldOut(
    network=run.networks.policy,
    prompts=held_out.choose_prompts(
      run.data.valid_prompts, num_prompts, config, tokenizer, field
    ),
    tokenizer=tokenizer,
    sampling=sampling.sampling_params(
      tokenizer,
      max_new_tokens=config.data.max_response_tokens,
      temperature=config.ppo.eval_temperature,
      samples=samples_per_prompt,
    ),
    mesh=run.mesh,
    seed=config.seed,
    scorers=scorers,
    reference=run.frozen["reference"],
  )


def policy_params(trained: PpoState) -> PyTree:
  """Returns the trained parameters to save: the average, if there is one."""
  return trained.ema or trained.policy.params


def _all_params(run: PpoRun, params: PyTree) -> PyTree:
  """Returns all parameters of the policy, from the trained ones."""
  return lora.merge_trees(run.base.policy, params)


def to_metrics(answers: Answers) -> dict[str, float]:
  """Returns the means over the answers of a held-out evaluation."""
  assert answers.kl is not None
  metrics = {
    "valid_rm_score": answers.scores["reward"].mean(),
    "valid_kl": answers.kl.mean(),
    "valid_response_length": answers.lengths.mean(),
    "valid_ended": answers.ended.mean(),
  }
  if "judge" in answers.scores:
    metrics["valid_judge_score"] = answers.scores["judge"].mean()
  return {name: float(value) for name, value in metrics.items()}


class Observer:
  """Evaluates the policy and writes samples after iterations, where due."""

  def __init__(
    self,
    run: PpoRun,
    loops: Loops,
    writer: MetricWriter,
    save_best: Callable[[PpoState], None],
    *,
    resume_step: int,
  ):
    """Opens the samples.

    Args:
      run: the run.
      loops: what it measures.
      writer: writer of metrics.jsonl.
      save_best: saves the policy of a state as that of the stage.
      resume_step: number of updates that the run resumes from.
    """
    self._run, self._evaluation = run, loops.evaluation
    self._tasks = loops.tasks
    self._writer, self._save_best = writer, save_best
    self._samples = samples.SampleWriter(
      run.directory, loops.samples, writer, resume_step=resume_step
    )

  def observe(
    self,
    trained: PpoState,
    evaluated: Evaluated,
    iterations: int,
    *,
    last: bool,
  ) -> Evaluated:
    """Observes the policy after some iterations.

    Args:
      trained: the state.
      evaluated: evaluations up to now.
      iterations: number of iterations done.
      last: whether the run ends here; then both are due.

    Returns:
      The evaluations, with a new one if it was due.
    """
    step = iterations * self._run.config.ppo.updates_per_iteration
    params = policy_params(trained)
    self._samples.write_if_due(step, params, iteration=iterations, last=last)
    if self._tasks is not None and self._tasks.is_due(iterations, last=last):
      self._writer.write(step, self._tasks.measure(params))
    every = self._run.config.ppo.eval_every
    if self._evaluation is None or not every:
      return evaluated
    if not last and iterations % every:
      return evaluated
    metrics = to_metrics(
      self._evaluation.answer(_all_params(self._run, params))
    )
    self._writer.write(step, metrics)
    return self._choose(trained, evaluated, metrics, step)

  def _choose(
    self,
    trained: PpoState,
    evaluated: Evaluated,
    metrics: dict[str, float],
    step: int,
  ) -> Evaluated:
    """Saves the policy if it is the best by `run.keep_best`."""
    best = evaluated.chosen(self._run.config.run)
    metric = self._run.config.run.keep_best
    if metric in metrics and math.isfinite(metrics[metric]):
      score = metrics[metric]
      if best is None or score > best["score"]:
        best = {"score": score, "step": step, "metric": metric}
        self._save_best(trained)
    return Evaluated(metrics, step, best)

  def close(self) -> None:
    """Closes the samples."""
    self._samples.close()

  def __enter__(self) -> Observer:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()
