"""A Hugging Face directory <-> a workdir of ours.

  python -m instructgpt_jax.hub import --from=HF_DIR --to=WORKDIR
  python -m instructgpt_jax.hub export --from=WORKDIR --to=HF_DIR

HF_DIR has config.json, safetensors (one file or several with an index) and the
tokenizer's files; docs/models.md lists the architectures. WORKDIR is that of
any finished stage; a reward model is a ...ForSequenceClassification. Tensors go
through memory a few at a time. Experiments and `chat` also take HF_DIR
directly, as --init_from and --checkpoints.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax

from instructgpt_jax.checkpoint import checkpoints, trees
from instructgpt_jax.cli import launch, process_settings
from instructgpt_jax.data.tokenizers import exported_tokens
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import directory as hub
from instructgpt_jax.interop import peft, tensors
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import abstract_params
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.sharding import unbox
from instructgpt_jax.training import stage_errors, stage_model, tokenizer_store

_PART = 1 << 26  # bytes of arrays that are written together


def import_model(path: str, to: str, *, scan_layers: bool = False) -> None:
  """Writes a workdir from which every stage can start.

  Args:
    path: a Hugging Face directory.
    to: the workdir, which must not be there.
    scan_layers: stacks the arrays of all layers, which are then held together.

  Raises:
    UserError: the directory is not as it should be; nothing is written.
  """
  fix = "give a directory that save_pretrained wrote"
  if not pathlib.Path(path).is_dir():
    raise stage_errors.no_directory(path, "--from", fix=fix)
  if not hub.is_folder(path):
    raise UserError(
      "holds no config.json of a model", file=path, field="--from", fix=fix,
      code="no_config",
    )  # fmt: skip
  target = _new(to)
  stage = stage_model.open_stage(path, field="--from")
  stage = dataclasses.replace(
    stage,
    model_config=dataclasses.replace(
      stage.model_config, scan_layers=scan_layers
    ),
  )
  scratch = target.with_name(f".{target.name}.next")
  shutil.rmtree(scratch, ignore_errors=True)
  try:
    tokenizer_store.put_tokenizer(scratch, stage.tokenizer)
    checkpoints.save_model_parts(
      scratch,
      _parts(stage),
      stage_model.model_info(
        stage.kind,
        stage.model_config,
        stage.data,
        origin=stage.origin,
        stage="import",
        step=0,
      ),
    )
    files.mark_complete(scratch, {"imported": stage.source.family.kind})
    with files.disk_errors_as_user_errors(target):
      os.rename(scratch, target)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def _parts(stage: stage_model.Stage) -> Iterator[Any]:
  """The parameters, some leaves at a time."""
  tree = unbox(abstract_params(stage.network))
  part: dict[str, Any] = {}
  held = 0
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    size = leaf.size * leaf.dtype.itemsize
    if part and held + size > _PART:
      yield stage.params(part)
      part, held = {}, 0
    node = part
    for key in path[:-1]:
      node = node.setdefault(key.key, {})
    node[path[-1].key] = leaf
    held += size
  yield stage.params(part)


class _Leaves(Mapping[str, Any]):
  """Path → array of a stage, whose adapters are merged; one is held."""

  def __init__(self, stage: stage_model.Stage):
    self._read = stage.reader()
    self._shapes = hub.flattened(unbox(abstract_params(stage.network)))
    self._below, self._scale = None, 0.0
    if stage.base is not None:
      c = stage.model_config
      self._scale = c.lora_alpha / c.lora_rank
      self._below = _Leaves(stage.base)
      stage.check(self._below)
    self._last: tuple[str, Any] = ("", None)

  def __getitem__(self, path: str) -> Any:
    if path not in self._shapes:
      raise KeyError(path)
    if self._last[0] != path:
      self._last = ("", None)
      self._last = (path, self._made(path))
    return self._last[1]

  def _made(self, path: str) -> Any:
    if self._below is None or path not in self._below:
      return self._own(path)
    layer, _, leaf = path.rpartition("/")
    found = self._below[path]
    if leaf == "kernel" and f"{layer}/{lora.UP}" in self._shapes:
      down, up = (self._own(f"{layer}/{n}") for n in (lora.DOWN, lora.UP))
      found = lora.apply_lora(found, down, up, self._scale, "/blocks/" in path)
    return found

  def _own(self, path: str) -> Any:
    """An array of the stage itself."""
    tree = self._read(trees.unflatten_dict({path: self._shapes[path]}))
    return hub.flattened(tree)[path]

  def __iter__(self) -> Iterator[str]:
    return iter(self._shapes)

  def __len__(self) -> int:
    return len(self._shapes)


def export_model(
  path: str,
  to: str,
  *,
  dtype: str = "",
  file_size: int = 5_000_000_000,
  adapters: bool = False,
  base: str = "",
) -> str:
  """Writes a directory that `transformers` loads.

  Args:
    path: workdir of a finished stage.
    to: the directory, which must not be there.
    dtype: of the tensors; "" is the dtype of the directory that training began
      from, float32 where it began from nothing.
    file_size: most bytes of a file.
    adapters: writes the adapters alone, for PEFT; they are merged otherwise.
    base: where PEFT finds what they stand on; "" is where the stage did, if
      that was a directory of `transformers`.

  Returns:
    The class that it was written as.
  """
  _new(to)
  stage = stage_model.open_stage(path, field="--from")
  origin = stage.origin
  if not dtype and origin and origin.dtype != "float32":
    log_line(
      f"{to}: in {origin.dtype}, as the base; --dtype=float32 does not round"
    )
  dtype = dtype or (origin.dtype if origin else "float32")
  if adapters:
    _adapters(stage, to, base, dtype)
    return "adapter"
  special = exported_tokens.export(
    stage.tokenizer, needs_pad=stage.kind == stage_model.SCALAR
  )
  if stage.kind == stage_model.SCALAR and special.adds_pad:
    log_line(f"{to}: with a padding token of its own, {special.pad}")
  family = hub.save(
    to,
    _Leaves(stage),
    dataclasses.replace(stage.model_config, lora_rank=0),
    special.files,
    ids=special.ids,
    dtype=dtype,
    most=file_size,
    origin=origin,
  )
  other = exported_tokens.reads_otherwise(special.files, family.kind)
  if other:
    log_line(
      f"{to}: AutoTokenizer of transformers 5 reads every {family.kind} by"
      f" {other}; load the tokenizer with PreTrainedTokenizerFast"
    )
  if stage.kind == stage_model.LANGUAGE:
    return family.language
  return family.scalar


def _adapters(stage: stage_model.Stage, to: str, base: str, dtype: str) -> None:
  if stage.base is None:
    raise UserError(
      "has no adapters",
      file=stage.path,
      field="--adapters",
      fix="export it without --adapters",
    )
  if not base and stage.base.source is None:
    raise UserError(
      f"its adapters stand on {stage.base.path}, which is a workdir",
      field="--base",
      fix="export that too, and name its new folder with --base",
    )
  exported = exported_tokens.export(stage.tokenizer, needs_pad=False)
  if stage.kind == stage_model.SCALAR and "pad_token_id" not in exported.ids:
    log_line(
      f"{to}: the base has no padding token; score one text at a time, or"
      " export without --adapters"
    )
  _, trained = lora.split(
    stage.model_config, unbox(abstract_params(stage.network))
  )
  peft.save(
    to,
    hub.flattened(stage.reader()(trained)),
    stage.model_config,
    exported.files,
    base=base or os.path.abspath(stage.base.path),
    dtype=dtype,
  )


def _new(path: str) -> pathlib.Path:
  target = pathlib.Path(path).absolute()
  if target.exists():
    raise UserError(
      "exists already", file=path, field="--to", fix="name another folder"
    )
  return target


class _Parser(argparse.ArgumentParser):
  """Raises a UserError instead of printing its usage."""

  def error(self, message: str) -> NoReturn:
    raise UserError(message, fix="see --help")


def _bytes(text: str) -> int:
  units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
  unit = units.get(text[-2:].upper())
  try:
    size = round(float(text[:-2]) * unit) if unit else int(text)
  except ValueError:
    size = 0
  if size < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5GB")
  return size


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = _Parser(
    prog="python -m instructgpt_jax.hub",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("what", choices=("import", "export"))
  add = parser.add_argument
  add("--from", required=True, dest="source", metavar="DIR", help="is read")
  add("--to", required=True, metavar="DIR", help="is written; must be new")
  add(
    "--scan_layers",
    action="store_true",
    help="import: for runs with --model.scan_layers; layers are held together",
  )
  add(
    "--dtype",
    choices=tuple(tensors.NAMES),
    default="",
    help="export: dtype of the tensors (default: that of the directory that"
    " training began from, else float32)",
  )
  add(
    "--file_size",
    type=_bytes,
    default="5GB",
    metavar="SIZE",
    help="export: most bytes of a file (default: 5GB)",
  )
  add(
    "--adapters",
    action="store_true",
    help="export: adapters alone, for PEFT, of a run with --model.lora_rank",
  )
  add(
    "--base",
    default="",
    metavar="DIR",
    help="export --adapters: where PEFT finds the model below them",
  )
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 0, or 2 after a mistake."""

  def run() -> None:
    flags = _flags(argv)
    process_settings.silence_libraries()
    if flags.what == "import":
      import_model(flags.source, flags.to, scan_layers=flags.scan_layers)
      print(f"{flags.to}: give it as --init_from", file=sys.stderr)
      return
    name = export_model(
      flags.source,
      flags.to,
      dtype=flags.dtype,
      file_size=flags.file_size,
      adapters=flags.adapters,
      base=flags.base,
    )
    print(f"{flags.to}: a {name}", file=sys.stderr)

  return launch.run_with_errors(run)


if __name__ == "__main__":
  sys.exit(main())
