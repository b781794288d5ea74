"""Ranks more answers of a finished pipeline's models, in the embedded world."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.pipeline import rankings
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.training import inheritance, stage_model
from instructgpt_jax.world import write

_FIX = "give --pipeline=DIR, the workdir of experiments.pipeline without data"


def run(config: configs.LabelsExperiment, directory: str) -> None:
  """Ranks the first rounds of a pipeline again, with other numbers or noise.

  The same numbers as the pipeline's give the same answers.

  Args:
    config: the experiment.
    directory: its workdir; gets round_1.jsonl, round_1_held_out.jsonl, ….

  Raises:
    UserError: `no_pipeline`; `missing_round`, the pipeline has fewer rounds; or
      a model of the pipeline is missing.
  """
  if stage_model.is_complete(directory):
    return
  root = pathlib.Path(config.pipeline)
  world = write.world_files(root / "world")
  if not config.pipeline or not pathlib.Path(world.world).is_file():
    raise UserError(
      "is not the workdir of a pipeline on the embedded world",
      file=config.pipeline or None,
      field="pipeline",
      fix=_FIX,
      code="no_pipeline",
    )
  recorded = _recorded_config(root)
  _require_rounds(config.labeling.rounds, recorded)
  base = str(root / "pretrain")
  if not pathlib.Path(base).is_dir():
    base = str(recorded.get("init_from") or base)
  rounds = {
    number: rankings.sampled_models(config.pipeline, base, number)
    for number in range(1, config.labeling.rounds + 1)
  }
  # All models are opened first: a missing one ends the run before it samples.
  stages = {
    model.workdir: stage_model.open_stage(
      model.workdir, kind=stage_model.LANGUAGE, field="pipeline", run=config
    )
    for models in rounds.values()
    for model in models
  }
  policy = stages[str(root / "policy_init")]
  data = dataclasses.replace(
    inheritance.inherited_data(config.data, policy), prompts=world.prompts
  )
  config = dataclasses.replace(config, data=data)
  counts = {}
  for number, models in rounds.items():
    path = rankings.label_round(
      config, directory, number, models, str(root / "world")
    )
    for split in ("train", "valid"):
      counts[f"round_{number}_{split}"] = _count(path, split)
  files.mark_complete(directory, counts)


def _recorded_config(root: pathlib.Path) -> Mapping[str, Any]:
  """Reads the config of a pipeline; {} without one."""
  path = root / files.CONFIG
  recorded = files.read_json(path, fix=_FIX) if path.is_file() else None
  config = recorded.get("config") if isinstance(recorded, dict) else None
  return config if isinstance(config, dict) else {}


def _require_rounds(rounds: int, recorded: Mapping[str, Any]) -> None:
  """Refuses more rounds than the pipeline has; says if there are fewer."""
  labeling = recorded.get("labeling")
  available = labeling.get("rounds") if isinstance(labeling, dict) else None
  if not isinstance(available, int) or rounds == available:
    return
  if rounds > available:
    raise UserError(
      f"is {rounds}, and the pipeline has {available}",
      field="labeling.rounds",
      fix=f"give --labeling.rounds={available}",
      code="missing_round",
    )
  log_line(
    f"labeling.rounds is {rounds}; the pipeline's later rounds, up to"
    f" {available}, are not ranked again"
  )


def _count(path: str, split: str) -> int:
  """Counts the rankings of a split in a file of a round."""
  with open(path, encoding="utf-8") as lines:
    return sum(json.loads(line)["split"] == split for line in lines)
