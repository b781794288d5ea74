"""Ranks more answers of a finished pipeline's models, in the embedded world."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.pipeline import rankings
from instructgpt_jax.runs import files
from instructgpt_jax.training import inheritance, stage_model
from instructgpt_jax.world import write

_FIX = "give --pipeline=DIR, the workdir of experiments.pipeline without data"


def run(config: configs.LabelsExperiment, directory: str) -> None:
  """Ranks the rounds of a pipeline again, with other numbers or other noise.

  The same numbers as the pipeline's give the same answers.

  Args:
    config: the experiment.
    directory: its workdir; gets round_1.jsonl, round_1_held_out.jsonl, ….

  Raises:
    UserError: `no_pipeline`, or a model of the pipeline is missing.
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
  policy = stage_model.open_stage(
    str(root / "policy_init"),
    kind=stage_model.LANGUAGE,
    field="pipeline",
    run=config,
  )
  data = dataclasses.replace(
    inheritance.inherited_data(config.data, policy), prompts=world.prompts
  )
  config = dataclasses.replace(config, data=data)
  base = _base_model(root)
  counts = {}
  for number in range(1, config.labeling.rounds + 1):
    path = rankings.label_round(
      config,
      directory,
      number,
      rankings.sampled_models(config.pipeline, base, number),
      str(root / "world"),
    )
    for split in ("train", "valid"):
      counts[f"round_{number}_{split}"] = _count(path, split)
  files.mark_complete(directory, counts)


def _base_model(root: pathlib.Path) -> str:
  """Returns the workdir of a pipeline's base model, its own or `init_from`."""
  pretrained = root / "pretrain"
  if pretrained.is_dir():
    return str(pretrained)
  recorded = files.read_json(root / files.CONFIG, fix=_FIX)
  config = recorded.get("config") if isinstance(recorded, dict) else None
  start = config.get("init_from") if isinstance(config, dict) else None
  return str(start or pretrained)


def _count(path: str, split: str) -> int:
  """Counts the rankings of a split in a file of a round."""
  with open(path, encoding="utf-8") as lines:
    return sum(json.loads(line)["split"] == split for line in lines)
