"""One seed's world, the models that all studies start from, and their runs."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt_jax.evaluation import evaluate
from instructgpt_jax.runs import files
from instructgpt_jax.studies.answers import Answers
from instructgpt_jax.studies.scale import OWN, Scale, flags_of
from instructgpt_jax.sweeps.jobs import Job

SHARED = ("pretrain", "policy_init", "reward", "sft")


class Family:
  """Makes the runs of one seed, and reads what they left.

  A run is named after what it changes, so that studies which ask for the same
  run share it.
  """

  def __init__(self, scale: Scale, seed: int, root: str):
    self.scale, self.seed, self.root = scale, seed, root
    self._answers: dict[str, Answers] = {}

  @property
  def shared(self) -> Job:
    """World, base model, policy initialisation, labels, RM and SFT."""
    recipe = dict(self.scale.recipe)
    return self._job("shared", "pipeline", recipe | {"until": "sft"}, ())

  def folder(self, model: Job | str) -> str:
    """The workdir of a run, or of a stage of `shared`."""
    if isinstance(model, Job):
      return model.workdir(self.root)
    return os.path.join(self.shared.workdir(self.root), model)

  def world(self, name: str = "") -> str:
    """The world's folder, or one of its files."""
    return (
      os.path.join(self.folder("world"), name) if name else self.folder("world")
    )

  def run(
    self,
    experiment: str,
    changes: Mapping[str, Any] | None = None,
    *,
    init: Job | str = "",
    size: str = OWN,
    label: str = "",
    reward: Job | str = "reward",
    given: Mapping[str, Any] | None = None,
  ) -> Job:
    """A run of an experiment by the recipe.

    Args:
      experiment: pretrain, policy_init, sft, reward, ppo or ppo_ptx.
      changes: flags that differ from the recipe.
      init: the run or shared stage to start from.
      size: of the model.
      label: names what `changes` cannot tell, such as another start.
      reward: the reward model of PPO, and of SFT's choice of a checkpoint.
      given: further flags, which `label` stands for in the name.
    """
    changes = dict(changes or {})
    flags = flags_of(
      experiment, dict(self.scale.recipe) | dict(self.scale.sizes[size])
    ) | self._data(experiment)
    if experiment == "ppo":
      flags.pop("ppo.ptx_coef", None)
    needs = [self.shared.name]
    for field, model in (
      ("init_from", init),
      ("ppo.reward_model", reward if experiment in ("ppo", "ppo_ptx") else ""),
      ("sft.reward_model", reward if experiment == "sft" else ""),
    ):
      if model:
        flags[field] = self.folder(model)
        needs += [model.name] if isinstance(model, Job) else []
    name = ",".join(
      [label] * bool(label)
      + [f"{k.rpartition('.')[2]}={_shown(v)}" for k, v in changes.items()]
    )
    return self._job(
      f"{experiment}/{name or 'default'}",
      experiment,
      flags | changes | dict(given or {}),
      needs,
    )

  def ppo(
    self,
    changes: Mapping[str, Any] | None = None,
    *,
    init: Job | str = "policy_init",
    size: str = OWN,
    label: str = "",
    reward: Job | str = "reward",
  ) -> Job:
    """PPO at γ = 0, or PPO-ptx, by the γ among `changes` or in the recipe.

    Changes that are the recipe's own values are dropped.
    """
    changes = dict(changes or {})
    ptx = changes.get("ppo.ptx_coef", self.scale.value("ppo.ptx_coef"))
    if not ptx:
      changes.pop("ppo.ptx_coef")
    experiment = "ppo_ptx" if ptx else "ppo"

    def recipe(name: str) -> Any:
      stage = {"optimizer": f"{experiment}.", "value_optimizer": "ppo."}
      return self.scale.value(stage.get(name.partition(".")[0], "") + name)

    return self.run(
      experiment,
      {k: v for k, v in changes.items() if v != recipe(k)},
      init=init,
      size=size,
      label=label,
      reward=reward,
    )

  def measured(
    self,
    model: Job | str,
    changes: Mapping[str, Any] | None = None,
    *,
    snapshot: int = 0,
    start: Job | str = "policy_init",
    label: str = "",
    needs: Sequence[Job] = (),
  ) -> Job:
    """Held-out prompts answered by a run's model.

    Args:
      model: a run, or a stage of `shared`.
      changes: flags of `evaluate` that differ from the scale's.
      snapshot: the iteration of PPO's snapshot to measure instead.
      start: what KL is measured to.
      label: names what `changes` cannot tell.
      needs: further runs whose folders `changes` name.
    """
    folder = self.folder(model)
    wanted = [self.shared.name, *(job.name for job in needs)]
    name = f"{model}/shared"
    if isinstance(model, Job):
      name = model.name.partition("/")[2]
    wanted += [j.name for j in (model, start) if isinstance(j, Job)]
    if snapshot:
      folder = os.path.join(folder, "snapshots", f"{snapshot:06d}")
      name += f"@{snapshot}"
    flags = flags_of("evaluate", dict(self.scale.recipe))
    flags |= self._data("evaluate") | dict(self.scale.measure)
    flags |= {
      "init_from": folder,
      "measure.start": self.folder(start),
      "measure.reward_model": self.folder("reward"),
      "measure.world": self.world(),
    } | dict(changes or {})
    if label:
      name += f",{label}"
    return self._job(f"measured/{name}", "evaluate", flags, wanted)

  def answers(self, job: Job) -> Answers:
    """What a `measured` run found."""
    if job.name not in self._answers:
      path = os.path.join(job.workdir(self.root), evaluate.ANSWERS)
      self._answers[job.name] = Answers(files.read_json(path))
    return self._answers[job.name]

  def summary(self, job: Job | str) -> dict[str, Any]:
    """complete.json of a run."""
    return files.read_complete(self.folder(job)) or {}

  @functools.cached_property
  def vocabulary(self) -> int:
    """Entries of the world's vocabulary."""
    folder = os.path.join(self.folder("pretrain"), "tokenizer")
    from instructgpt_jax.data import tokenizers

    return tokenizers.load_tokenizer(folder).vocab_size

  def _job(
    self, name: str, experiment: str, flags: Mapping[str, Any], needs: Any
  ) -> Job:
    own = {"preset": self.scale.preset, "seed": self.seed}
    return Job(
      f"seed{self.seed}/{name}", experiment, own | dict(flags), tuple(needs)
    )

  def _data(self, experiment: str) -> dict[str, Any]:
    """Which of the world's files an experiment reads."""
    sources = {
      "pretrain": ("pretraining",),
      "policy_init": ("demonstrations", "pretraining"),
      "sft": ("demonstrations",),
      "reward": ("demonstrations",),
      "ppo": ("prompts",),
      "ppo_ptx": ("prompts", "pretraining"),
      "evaluate": ("prompts", "pretraining"),
    }[experiment]
    flags = {f"data.{s}": self.world(f"{s}.jsonl") for s in sources}
    if experiment == "reward":
      rounds = self.scale.value("labeling.rounds")
      flags["data.comparisons"] = ",".join(
        os.path.join(self.folder("rankings"), f"round_{i}.jsonl")
        for i in range(1, rounds + 1)
      )
    if experiment == "pretrain":
      flags["tokenizer.path"] = os.path.join(
        self.folder("pretrain"), "tokenizer"
      )
    return flags


def _shown(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.4g}"
  return str(value).lower() if isinstance(value, bool) else str(value)
