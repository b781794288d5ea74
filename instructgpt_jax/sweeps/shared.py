"""Shared stages: trained once, and the start of all runs of a sweep."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

from instructgpt_jax.cli import flags
from instructgpt_jax.configs.model import ARCHITECTURE
from instructgpt_jax.data.reading import specs
from instructgpt_jax.errors import UserError
from instructgpt_jax.sweeps.jobs import Job

NAME = "shared"
_PPO = ("init_from", "ppo.reward_model")
# Experiment → fields of its start, and the last pipeline stage that it needs.
_REQUIREMENTS: Mapping[str, tuple[tuple[str, ...], str]] = {
  "pretrain": ((), "world"),
  "sft": (("init_from",), "pretrain"),
  "policy_init": (("init_from",), "pretrain"),
  "reward": (("init_from",), "reward"),
  "ppo": (_PPO, "reward"),
  "ppo_ptx": (_PPO, "reward"),
}
_SOURCES = ("demonstrations", "comparisons", "prompts", "pretraining")
_DATA = tuple(f"data.{source}" for source in _SOURCES)
# Prefixes of the settings that all stages of a pipeline have.
_COMMON = ("model.", "tokenizer.", "data.", "mesh.", "run.")


@dataclasses.dataclass(frozen=True)
class SharedStages:
  """Shared stages of a sweep.

  Attributes:
    job: the job that trains them.
    flags: the flags that start a run from them.
  """

  job: Job
  flags: Mapping[str, Any]


def last_shared_stage(experiment: str, fields: Iterable[str]) -> str:
  """Returns the last stage to share; "" if a start or data are set.

  Args:
    experiment: name of the swept experiment.
    fields: fields that the command line sets or sweeps.
  """
  starts, last = _REQUIREMENTS.get(experiment, ((), ""))
  named = set(fields) & {*starts, *_DATA}
  return "" if named else last


def shared_stages(
  root: str,
  experiment: str,
  settings: Mapping[str, Any],
  swept: Iterable[str],
  pipeline: Any,
  more: Mapping[str, Any],
) -> SharedStages:
  """Returns the shared stages of a sweep that sets no start and no data.

  Args:
    root: the sweep's directory.
    experiment: name of the swept experiment.
    settings: flags of all runs. The seed and the settings of all stages also
      hold for the shared stages if they are not swept.
    swept: fields of the grid or search.
    pipeline: the pipeline's config at the same preset.
    more: further flags of the shared stages.

  Raises:
    UserError: the pipeline refuses the flags; or `other_architecture`, the
      network is swept, which all runs take from a shared stage.
  """
  starts, last = _REQUIREMENTS[experiment]
  if starts:
    _check_not_swept(experiment, swept)
  common = {
    name: value
    for name, value in settings.items()
    if name not in swept and (name == "seed" or name.startswith(_COMMON))
  }
  values = {"until": last, **common, **more}
  config = flags.replace(pipeline, values)
  preset = {k: v for k, v in settings.items() if k == "preset"}
  job = Job(NAME, "pipeline", {**preset, **values})

  def directory(*names: str) -> str:
    return os.path.join(root, NAME, *names)

  start = {
    f"data.{source}": directory("world", f"{source}.jsonl")
    for source in ("demonstrations", "prompts", "pretraining")
  }
  if experiment in ("sft", "policy_init"):
    start["init_from"] = directory("pretrain")
  elif experiment != "pretrain":
    start["init_from"] = directory("policy_init")
  if experiment == "reward":
    if config.has_public_comparisons:
      start["init_from"] = directory("reward_init")
    rounds = range(1, config.labeling.rounds + 1)
    start["data.comparisons"] = specs.join(
      specs.Part(directory("rankings", f"round_{number}.jsonl"))
      for number in rounds
    )
  elif last == "reward":
    start["ppo.reward_model"] = directory("reward")
  return SharedStages(job, start)


def _check_not_swept(experiment: str, swept: Iterable[str]) -> None:
  """Refuses swept fields that a run takes from the stage it starts from."""
  network = {f"model.{name}" for name in ARCHITECTURE}
  for name in swept:
    if name in network:
      raise UserError(
        f"sweeps {name}, but all runs of {experiment} start from one shared"
        " model and have its network",
        field="--sweep",
        fix=f"give each value its own sweep, with --{name}=…",
        code="other_architecture",
      )
