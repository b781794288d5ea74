"""Defines the runs of one seed, and reads their results."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt_jax.data.reading import specs
from instructgpt_jax.evaluation import evaluate, reward_pairs
from instructgpt_jax.runs import files
from instructgpt_jax.studies.measured_model import MeasuredModel
from instructgpt_jax.studies.scale import RECIPE_SIZE, Scale, experiment_flags
from instructgpt_jax.sweeps.jobs import Job


class SeedRuns:
  """The runs of one seed: its shared stages and the runs of all studies.

  A run is named after the flags that it changes, so that studies that need the
  same run share it.
  """

  def __init__(self, scale: Scale, seed: int, root: str):
    self.scale, self.seed, self.root = scale, seed, root
    self._answers: dict[str, MeasuredModel] = {}
    self._pair_counts: dict[str, dict[str, Any]] = {}

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
    needs: Sequence[Job] = (),
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
      needs: further runs whose workdirs `extra_flags` contain.
    """
    changes = dict(changes or {})
    flags = experiment_flags(
      experiment, dict(self.scale.recipe) | dict(self.scale.sizes[size])
    ) | self._data_flags(experiment)
    if experiment == "ppo":
      flags.pop("ppo.ptx_coef", None)
    before = [self.shared_job.name, *(job.name for job in needs)]
    for field, model in (
      ("init_from", init),
      ("ppo.reward_model", reward if experiment in ("ppo", "ppo_ptx") else ""),
      ("sft.reward_model", reward if experiment == "sft" else ""),
    ):
      if model:
        flags[field] = self.directory(model)
        before += [model.name] if isinstance(model, Job) else []
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
      before,
    )

  def reward_start(
    self,
    base: Job | str = "pretrain",
    policy_init: Job | str = "policy_init",
    *,
    size: str = RECIPE_SIZE,
    label: str = "",
  ) -> Job | str:
    """Returns what the recipe's reward models start from.

    With public comparisons it is trained on those, as `reward_init`.

    Args:
      base: the base model.
      policy_init: its policy initialisation.
      size: size of both.
      label: distinguishes both from the shared stages.
    """
    init = self.language_start(base, policy_init)
    if not self.scale.value("world.public_comparisons"):
      return init
    if init in ("pretrain", "policy_init"):
      return "reward_init"
    return self.reward_init_job(init, size=size, label=f"public,{label}")

  def language_start(
    self, base: Job | str = "pretrain", policy_init: Job | str = "policy_init"
  ) -> Job | str:
    """Returns the language model that training of reward models begins with.

    Args:
      base: see `reward_start`.
      policy_init: see `reward_start`.
    """
    start = self.scale.value("reward.init_from")
    return {"base": base, "policy_init": policy_init}[start]

  def reward_init_job(
    self,
    init: Job | str,
    *,
    label: str,
    size: str = RECIPE_SIZE,
    extra_flags: Mapping[str, Any] | None = None,
    needs: Sequence[Job] = (),
  ) -> Job:
    """Returns the training on public comparisons; see `training_job`."""
    settings = {
      "reward.epochs": "epochs",
      "reward.batch_size": "batch_size",
      "optimizer.learning_rate": "optimizer.learning_rate",
    }
    recipe = {
      field: self.scale.value(f"reward_init.{name}")
      for field, name in settings.items()
    }
    recipe |= experiment_flags("reward_init", dict(self.scale.sizes[size]))
    public = {"data.comparisons": self.world_path("public_comparisons.jsonl")}
    return self.training_job(
      "reward",
      init=init,
      size=size,
      label=label,
      extra_flags=recipe | public | dict(extra_flags or {}),
      needs=needs,
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
    flags = self._flags_without_model("evaluate")
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

  def world_job(self, changes: Mapping[str, Any], label: str) -> Job:
    """Returns a job that writes the seed's world with other sizes."""
    recipe = dict(self.scale.recipe) | {"until": "world"}
    return self._job(f"world/{label}", "pipeline", recipe | dict(changes), ())

  def labels_job(self, changes: Mapping[str, Any], label: str) -> Job:
    """Returns a job that ranks more answers of the shared pipeline's models."""
    flags = self._flags_without_model("labels")
    flags["pipeline"] = self.shared_job.workdir(self.root)
    return self._job(
      f"labels/{label}",
      "labels",
      flags | dict(changes),
      [self.shared_job.name],
    )

  def rankings_flag(
    self, labels: Job | None = None, round_number: int = 0
  ) -> str:
    """Returns the flag's value that names rankings.

    Args:
      labels: the job that made them; None takes the shared pipeline's.
      round_number: number of one round; 0 takes all.
    """
    root = self.directory(labels or "rankings")
    rounds = range(1, self.scale.value("labeling.rounds") + 1)
    return specs.join(
      specs.Part(os.path.join(root, f"round_{number}.jsonl"))
      for number in ([round_number] if round_number else rounds)
    )

  def pairs_job(
    self,
    model: Job | str,
    held_out: Job,
    *,
    ensemble: Sequence[Job | str] = (),
  ) -> Job:
    """Returns a job that measures what a model reads in pairs of replies.

    Args:
      model: a run, or a shared stage. Of a reward model its training rankings
        are measured as well.
      held_out: job of the rankings whose validation split is measured.
      ensemble: reward models that form an ensemble with this one.
    """
    flags = self._flags_without_model("reward_pairs")
    flags |= {
      "init_from": self.directory(model),
      "pairs.world": self.world_path(),
      "pairs.held_out": self.rankings_flag(held_out),
      "data.comparisons": self.rankings_flag(),
    }
    name, needs = f"{model}/shared", [self.shared_job.name, held_out.name]
    if isinstance(model, Job):
      name = model.name.partition("/")[2]
      needs += [*model.needs, model.name]
      if model.experiment == "reward":
        flags |= {
          k: v
          for k, v in model.flags.items()
          if k.startswith("reward.") or k == "data.comparisons"
        }
    if ensemble:
      name += ",ensemble"
      needs += [other.name for other in ensemble if isinstance(other, Job)]
      flags["pairs.ensemble"] = ",".join(map(self.directory, ensemble))
    return self._job(f"pairs/{name}", "reward_pairs", flags, needs)

  def pair_counts(self, job: Job) -> dict[str, Any]:
    """Reads what `pairs_job` has measured; see `evaluation.reward_pairs`."""
    if job.name not in self._pair_counts:
      path = os.path.join(job.workdir(self.root), reward_pairs.PAIRS)
      self._pair_counts[job.name] = files.read_json(path)
    return self._pair_counts[job.name]

  def _flags_without_model(self, experiment: str) -> dict[str, Any]:
    """Returns the recipe's flags for a model of any size."""
    flags = experiment_flags(experiment, dict(self.scale.recipe))
    return {k: v for k, v in flags.items() if not k.startswith("model.")}

  def measurements(self, job: Job) -> MeasuredModel:
    """Reads the measurements of an evaluation."""
    if job.name not in self._answers:
      path = os.path.join(job.workdir(self.root), evaluate.ANSWERS)
      self._answers[job.name] = MeasuredModel(files.read_json(path))
    return self._answers[job.name]

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
      flags["data.comparisons"] = self.rankings_flag()
    if experiment == "pretrain":
      flags["tokenizer.path"] = os.path.join(
        self.directory("pretrain"), "tokenizer"
      )
    return flags


def _format_value(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.4g}"
  return str(value).lower() if isinstance(value, bool) else str(value)
