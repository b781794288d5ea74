"""Errors for paths that hold no finished stage, by their contents."""

from __future__ import annotations

import pathlib
import re

from instructgpt_jax import gguf_header
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import directory as hub
from instructgpt_jax.interop import tensors

_FIX = "give the --workdir of a stage that has run to its end"
_WORD = r"[A-Za-z0-9][\w.-]*"
_HUB_NAME = re.compile(rf"{_WORD}/{_WORD}")
_ADDRESS = re.compile(
  r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://"
)
_REVISION = re.compile(r"(?:@|/(?:tree|blob|resolve)/)([\w.-]+).*")
_CACHED = re.compile(rf"models--({_WORD}?)--({_WORD})")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack")


def no_directory(path: str, field: str | None, *, fix: str = _FIX) -> UserError:
  """Returns the error for a path that is no directory.

  Args:
    path: the path.
    field: the flag that named it.
    fix: what to give where the path does not say what it is.
  """
  file = pathlib.Path(path)
  if file.is_file():
    in_model = file.suffix in _WEIGHTS or file.name == hub.CONFIG
    return UserError(
      "is a file, not a directory",
      file=path,
      field=field,
      fix=f"give its directory, {file.parent}" if in_model else fix,
      code="not_a_directory",
    )
  name, revision = _hub_name(path)
  if name:
    return UserError(
      "looks like the name of a model on the Hugging Face Hub; nothing is"
      " downloaded here",
      file=path,
      field=field,
      fix=f"run {_download(name, revision)}, and give"
      f" {name.rpartition('/')[2]}",
      code="hub_name",
    )
  if re.fullmatch(_WORD, path):
    fix += (
      f"; if {path} is the name of a model on the Hugging Face Hub, run"
      f" {_download(path)}, and give {path}"
    )
  return UserError(
    "there is no such directory", file=path, field=field, fix=fix,
    code="no_directory",
  )  # fmt: skip


def _hub_name(path: str) -> tuple[str, str]:
  """Returns (name of a model on the Hub, its revision) of a path; "" if none.

  A name has an organisation and a model (org/name), alone, with a revision
  (org/name@main), in an address, or as a directory of a cache
  (models--org--name).
  """
  address = _ADDRESS.match(path)
  text = path[address.end() :] if address else path
  for part in pathlib.Path(path).parts:
    cached = _CACHED.fullmatch(part)
    if cached:
      return "/".join(cached.groups()), ""
  text = text.removeprefix("models/") if address else text
  revision = _REVISION.search(text)
  text = text[: revision.start()] if revision else text
  text = text.rstrip("/")
  named = _HUB_NAME.fullmatch(text)
  if address and not named and not re.fullmatch(_WORD, text):
    return "", ""
  if not address and (not named or pathlib.Path(text).parent.exists()):
    return "", ""
  return text, revision.group(1) if revision else ""


def _download(name: str, revision: str = "") -> str:
  """Returns the command that downloads a model."""
  at = f" --revision {revision}" if revision else ""
  return (
    f"`hf download {name}{at} --local-dir {name.rpartition('/')[2]}` (in older"
    " versions `huggingface-cli download`)"
  )


def no_stage(path: str, field: str | None) -> UserError:
  """Returns the error for a path that is neither a stage nor a model.

  Args:
    path: a path without a finished stage's model and without a config.json of
      a model; may not exist.
    field: the flag that named it.
  """
  directory = pathlib.Path(path)
  if not directory.is_dir():
    return no_directory(path, field)
  problem, fix, code = _explain_contents(directory)
  return UserError(
    problem, file=str(directory), field=field, fix=fix, code=code
  )


def _explain_contents(directory: pathlib.Path) -> tuple[str, str, str]:
  """Returns (problem, fix, code) for a directory, by its contents."""
  names = sorted(path.name for path in directory.iterdir())
  stages = [name for name in names if checkpoints.has_model(directory / name)]
  if stages:
    return (
      "holds no finished stage",
      f"name the directory of one of its stages: {', '.join(stages)}",
      "no_stage",
    )
  for inside in (directory.parent, directory.parent.parent):
    if checkpoints.has_model(inside) and directory != inside:
      if directory.relative_to(inside).parts[0] in (
        checkpoints.MODEL,
        checkpoints.CHECKPOINTS,
      ):
        return "is a part of a stage", f"give {inside}", "part_of_a_stage"
  if "adapter_config.json" in names:
    return (
      "holds adapters of PEFT, not a whole model",
      "merge them: python -m instructgpt_jax.hub import --from=BASE"
      f" --adapter={directory} --to=WORKDIR, and give WORKDIR",
      "adapters_alone",
    )
  snapshots = directory / "snapshots"
  models = (
    sorted(p for p in snapshots.iterdir() if hub.is_hub_directory(p))
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
  files = [n for n in names if n.lower().endswith(gguf_header.SUFFIX)]
  if files and hub.CONFIG not in names:
    return (
      f"holds {files[0]}, but no config.json",
      f"give {directory / files[0]}",
      "no_config",
    )
  if weights or tensors.INDEX in names:
    if hub.CONFIG in names:
      hub.inspect(directory)  # names what is wrong with config.json
    return (
      f"holds {(weights or [tensors.INDEX])[0]}, but no config.json that"
      " describes the model",
      "give a complete directory that save_pretrained wrote",
      "no_config",
    )
  return "holds no finished stage", _FIX, "no_stage"
