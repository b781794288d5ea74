"""Defines the runs of one seed, and reads their results."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt_jax.evaluation import evaluate
from instructgpt_jax.runs import files
from instructgpt_jax.studies.measured_model import MeasuredModel
from instructgpt_jax.studies.scale import RECIPE_SIZE, Scale, experiment_flags
from instructgpt_jax.sweeps.jobs import Job

SHARED = ("pretrain", "policy_init", "reward", "sft")


class SeedRuns:
  """The runs of one seed: its shared stages and the runs of all studies.

  A run is named after the flags that it changes, so that studies that need the
  same run share it.
  """

  def __init__(self, scale: Scale, seed: int, root: str):
    self.scale, self.seed, self.root = scale, seed, root
    self._answers: dict[str, MeasuredModel] = {}

  @property
  def shared_job(self) -> Job:
    """Job of the world, base model, policy_init, labels, RM and SFT."""
    recipe = dict(self.scale.recipe)
    return self._job("shared", "pipeline", recipe | {"until": "sft"}, ())

  def directory(self, model: Job | str) -> str:
    """Returns the workdir of a run, or of a shared stage."""
    if isinstance(model, Job):
      return model.workdir(self.root)
    return os.path.join(self.shared_job.workdir(self.root), model)

  def world_path(self, name: str = "") -> str:
    """Returns the path of the world's directory, or of a file in it."""
    return (
      os.path.join(self.directory("world"), name)
      if name
      else self.directory("world")
    )

  def training_job(
    self,
    experiment: str,
    changes: Mapping[str, Any] | None = None,
    *,
    init: Job | str = "",
    size: str = RECIPE_SIZE,
    label: str = "",
    reward: Job | str = "reward",
    extra_flags: Mapping[str, Any] | None = None,
  ) -> Job:
    """Returns a training run that follows the recipe.

    Args:
      experiment: pretrain, policy_init, sft, reward, ppo or ppo_ptx.
      changes: flags that differ from the recipe.
      init: the run or shared stage to start from.
      size: model size.
      label: distinguishes the name beyond `changes`, such as another start.
      reward: reward model of PPO, and of SFT's checkpoint selection.
      extra_flags: further flags, which `label` represents in the name.
    """
    changes = dict(changes or {})
    flags = experiment_flags(
      experiment, dict(self.scale.recipe) | dict(self.scale.sizes[size])
    ) | self._data_flags(experiment)
    if experiment == "ppo":
      flags.pop("ppo.ptx_coef", None)
    needs = [self.shared_job.name]
    for field, model in (
      ("init_from", init),
      ("ppo.reward_model", reward if experiment in ("ppo", "ppo_ptx") else ""),
      ("sft.reward_model", reward if experiment == "sft" else ""),
    ):
      if model:
        flags[field] = self.directory(model)
        needs += [model.name] if isinstance(model, Job) else []
    name = ",".join(
      [label] * bool(label)
      + [
        f"{k.rpartition('.')[2]}={_format_value(v)}" for k, v in changes.items()
      ]
    )
    return self._job(
      f"{experiment}/{name or 'default'}",
      experiment,
      flags | changes | dict(extra_flags or {}),
      needs,
    )

  def ppo_job(
    self,
    changes: Mapping[str, Any] | None = None,
    *,
    init: Job | str = "policy_init",
    size: str = RECIPE_SIZE,
    label: str = "",
    reward: Job | str = "reward",
  ) -> Job:
    """Returns a PPO run if γ is 0, else a PPO-ptx run.

    Changes that equal the recipe's values are dropped.
    """
    changes = dict(changes or {})
    ptx = changes.get("ppo.ptx_coef", self.scale.value("ppo.ptx_coef"))
    if not ptx:
      changes.pop("ppo.ptx_coef")
    experiment = "ppo_ptx" if ptx else "ppo"

    def recipe(name: str) -> Any:
      stage = {"optimizer": f"{experiment}.", "value_optimizer": "ppo."}
      return self.scale.value(stage.get(name.partition(".")[0], "") + name)

    return self.training_job(
      experiment,
      {k: v for k, v in changes.items() if v != recipe(k)},
      init=init,
      size=size,
      label=label,
      reward=reward,
    )

  def evaluation_job(
    self,
    model: Job | str,
    changes: Mapping[str, Any] | None = None,
    *,
    snapshot: int = 0,
    start: Job | str = "policy_init",
    label: str = "",
    needs: Sequence[Job] = (),
  ) -> Job:
    """Returns the evaluation of a run's model on held-out prompts.

    Args:
      model: a run, or a shared stage.
      changes: flags of `evaluate` that differ from the scale's.
      snapshot: iteration of the PPO snapshot to measure; 0 is the final model.
      start: reference model of the KL.
      label: distinguishes the name beyond `changes`.
      needs: further runs whose workdirs `changes` contain.
    """
    directory = self.directory(model)
    dependencies = [self.shared_job.name, *(job.name for job in needs)]
    name = f"{model}/shared"
    if isinstance(model, Job):
      name = model.name.partition("/")[2]
    dependencies += [j.name for j in (model, start) if isinstance(j, Job)]
    if snapshot:
      directory = os.path.join(directory, "snapshots", f"{snapshot:06d}")
      name += f"@{snapshot}"
    flags = experiment_flags("evaluate", dict(self.scale.recipe))
    flags |= self._data_flags("evaluate") | dict(self.scale.measure)
    flags |= {
      "init_from": directory,
      "measure.start": self.directory(start),
      "measure.reward_model": self.directory("reward"),
      "measure.world": self.world_path(),
    } | dict(changes or {})
    if label:
      name += f",{label}"
    return self._job(f"measured/{name}", "evaluate", flags, dependencies)

  def measurements(self, job: Job) -> MeasuredModel:
    """Reads the measurements of an evaluation."""
    if job.name not in self._answers:
      path = os.path.join(job.workdir(self.root), evaluate.ANSWERS)
      self._answers[job.name] = MeasuredModel(files.read_json(path))
    return self._answers[job.name]

  def summary(self, job: Job | str) -> dict[str, Any]:
    """Reads complete.json of a run."""
    return files.read_complete(self.directory(job)) or {}

  @functools.cached_property
  def vocab_size(self) -> int:
    """Size of the world's vocabulary."""
    directory = os.path.join(self.directory("pretrain"), "tokenizer")
    from instructgpt_jax.data import tokenizers

    return tokenizers.load_tokenizer(directory).vocab_size

  def _job(
    self, name: str, experiment: str, flags: Mapping[str, Any], needs: Any
  ) -> Job:
    defaults = {"preset": self.scale.preset, "seed": self.seed}
    return Job(
      f"seed{self.seed}/{name}",
      experiment,
      defaults | dict(flags),
      tuple(needs),
    )

  def _data_flags(self, experiment: str) -> dict[str, Any]:
    """Returns the flags of the world's files that an experiment reads."""
    sources = {
      "pretrain": ("pretraining",),
      "policy_init": ("demonstrations", "pretraining"),
      "sft": ("demonstrations",),
      "reward": ("demonstrations",),
      "ppo": ("prompts",),
      "ppo_ptx": ("prompts", "pretraining"),
      "evaluate": ("prompts", "pretraining"),
    }[experiment]
    flags = {f"data.{s}": self.world_path(f"{s}.jsonl") for s in sources}
    if experiment == "reward":
      rounds = self.scale.value("labeling.rounds")
      flags["data.comparisons"] = ",".join(
        os.path.join(self.directory("rankings"), f"round_{i}.jsonl")
        for i in range(1, rounds + 1)
      )
    if experiment == "pretrain":
      flags["tokenizer.path"] = os.path.join(
        self.directory("pretrain"), "tokenizer"
      )
    return flags


def _format_value(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.4g}"
  return str(value).lower() if isinstance(value, bool) else str(value)
