"""Errors for paths that hold no finished stage, by their contents."""

from __future__ import annotations

import pathlib
import re

from instructgpt_jax.errors import UserError
from instructgpt_jax.models.hub import folder as hub
from instructgpt_jax.models.hub import tensors
from instructgpt_jax.runtime import checkpoint

_FIX = "give the --workdir of a stage that has run to its end"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack")


def no_directory(path: str, field: str | None) -> UserError:
  """Returns the error for a path that is no directory."""
  place = pathlib.Path(path)
  if place.is_file():
    inside = place.suffix in _WEIGHTS or place.name == hub.CONFIG
    return UserError(
      "is a file, not a directory",
      file=path,
      field=field,
      fix=f"give its directory, {place.parent}" if inside else _FIX,
      code="not_a_directory",
    )
  if _HUB_NAME.fullmatch(path) and not place.parent.exists():
    name = place.name
    return UserError(
      "looks like the name of a model on the Hugging Face Hub; nothing is"
      " downloaded here",
      file=path,
      field=field,
      fix=f"run `hf download {path} --local-dir {name}` (in older versions"
      f" `huggingface-cli download`), and give {name}",
      code="hub_name",
    )
  return UserError(
    "there is no such directory", file=path, field=field, fix=_FIX,
    code="no_directory",
  )  # fmt: skip


def no_model(folder: pathlib.Path, field: str | None) -> UserError:
  """Returns the error for a directory without a model of ours."""
  problem, fix, code = _instead(folder)
  return UserError(problem, file=str(folder), field=field, fix=fix, code=code)


def _instead(folder: pathlib.Path) -> tuple[str, str, str]:
  """Returns (problem, fix, code) of a directory, by its contents."""
  names = sorted(path.name for path in folder.iterdir())
  stages = [name for name in names if checkpoint.has_model(folder / name)]
  if stages:
    return (
      "holds no finished stage",
      f"name the directory of one of its stages: {', '.join(stages)}",
      "no_stage",
    )
  for inside in (folder.parent, folder.parent.parent):
    if checkpoint.has_model(inside) and folder != inside:
      if folder.relative_to(inside).parts[0] in (
        checkpoint.MODEL,
        checkpoint.CHECKPOINTS,
      ):
        return "is a part of a stage", f"give {inside}", "part_of_a_stage"
  if "adapter_config.json" in names:
    return (
      "holds adapters of PEFT, not a whole model",
      "merge them into their model (merge_and_unload), save that, and give it",
      "adapters_alone",
    )
  snapshots = folder / "snapshots"
  models = (
    sorted(p for p in snapshots.iterdir() if hub.is_folder(p))
    if snapshots.is_dir()
    else []
  )
  if models:
    return (
      "is a cache of the Hugging Face Hub, which holds versions of models",
      f"give {models[-1]}",
      "hub_cache",
    )
  weights = [name for name in names if pathlib.Path(name).suffix in _WEIGHTS]
  if weights or tensors.INDEX in names:
    if hub.CONFIG in names:
      hub.look(folder)  # names what is wrong with config.json
    return (
      f"holds {(weights or [tensors.INDEX])[0]}, but no config.json that"
      " describes the model",
      "give a complete directory that save_pretrained wrote",
      "no_config",
    )
  return "holds no finished stage", _FIX, "no_stage"
