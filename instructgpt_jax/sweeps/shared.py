"""The stages that the runs of a sweep start from, trained once for all."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

from instructgpt_jax.cli import flags
from instructgpt_jax.sweeps.jobs import Job

NAME = "shared"
_PPO = ("init_from", "ppo.reward_model")
# What each experiment starts from, and the last stage of the pipeline for that.
_STARTS: Mapping[str, tuple[tuple[str, ...], str]] = {
  "pretrain": ((), "world"),
  "sft": (("init_from",), "pretrain"),
  "policy_init": (("init_from",), "pretrain"),
  "reward": (("init_from",), "reward"),
  "ppo": (_PPO, "reward"),
  "ppo_ptx": (_PPO, "reward"),
}
_SOURCES = ("demonstrations", "comparisons", "prompts", "pretraining")
_DATA = tuple(f"data.{source}" for source in _SOURCES)
# Settings that all stages of a pipeline have.
_COMMON = ("model.", "tokenizer.", "data.", "mesh.", "run.")


@dataclasses.dataclass(frozen=True)
class Shared:
  """The job that trains them, and the flags that start a run from them."""

  job: Job
  flags: Mapping[str, Any]


def until(experiment: str, given: Iterable[str]) -> str:
  """The last stage to share; "" where a start or data are given.

  Args:
    experiment: what is swept.
    given: fields that the command line gives or sweeps.
  """
  starts, last = _STARTS.get(experiment, ((), ""))
  named = set(given) & {*starts, *_DATA}
  return "" if named else last


def stages(
  root: str,
  experiment: str,
  settings: Mapping[str, Any],
  swept: Iterable[str],
  pipeline: Any,
  more: Mapping[str, Any],
) -> Shared:
  """The shared stages of a sweep without a start or data of its own.

  Args:
    root: the sweep's folder.
    experiment: what is swept.
    settings: flags of all its runs. The seed and what all stages have in common
      hold for the shared stages too, where they are not swept.
    swept: fields of the grid or search.
    pipeline: the pipeline's config at the same preset.
    more: further flags of the shared stages alone.

  Raises:
    UserError: the pipeline refuses the flags.
  """
  last = _STARTS[experiment][1]
  common = {
    name: value
    for name, value in settings.items()
    if name not in swept and (name == "seed" or name.startswith(_COMMON))
  }
  wanted = {"until": last, **common, **more}
  config = flags.replace(pipeline, wanted)
  preset = {k: v for k, v in settings.items() if k == "preset"}
  job = Job(NAME, "pipeline", {**preset, **wanted})

  def folder(*names: str) -> str:
    return os.path.join(root, NAME, *names)

  found = {
    f"data.{source}": folder("world", f"{source}.jsonl")
    for source in ("demonstrations", "prompts", "pretraining")
  }
  if experiment in ("sft", "policy_init"):
    found["init_from"] = folder("pretrain")
  elif experiment != "pretrain":
    found["init_from"] = folder("policy_init")
  if experiment == "reward":
    rounds = range(1, config.labeling.rounds + 1)
    found["data.comparisons"] = ",".join(
      folder("rankings", f"round_{number}.jsonl") for number in rounds
    )
  elif last == "reward":
    found["ppo.reward_model"] = folder("reward")
  return Shared(job, found)
