"""Converts between Hugging Face directories and workdirs.

  python -m instructgpt_jax.hub import --from=HF_DIR --to=WORKDIR
  python -m instructgpt_jax.hub import --from=FILE.gguf --to=WORKDIR
  python -m instructgpt_jax.hub import --from=HF_DIR --adapter=PEFT_DIR \\
    --to=WORKDIR
  python -m instructgpt_jax.hub export --from=WORKDIR --to=HF_DIR
  python -m instructgpt_jax.hub export --from=FILE.gguf --to=HF_DIR

HF_DIR contains config.json, safetensors files and the tokenizer's files;
docs/models.md lists the supported architectures. FILE.gguf is a model of
llama.cpp, whose quantised tensors become float32. PEFT_DIR contains LoRA
adapters, which are merged into the model. WORKDIR is the workdir of a finished
stage. A reward model becomes a ...ForSequenceClassification. Only a few tensors
are in memory at a time. Experiments and `chat` also read HF_DIR and FILE.gguf
directly, with --init_from and --checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from instructgpt_jax import gguf_header
from instructgpt_jax.checkpoint import checkpoints, trees
from instructgpt_jax.cli import launch, process_settings
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.data.tokenizers import exported_tokens, reward_template
from instructgpt_jax.errors import UserError
from instructgpt_jax.hub import model_card
from instructgpt_jax.interop import directory as hf
from instructgpt_jax.interop import peft, tensors
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import abstract_params
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.sharding import unbox
from instructgpt_jax.training import stage_errors, stage_model, tokenizer_store

_PART_BYTES = 1 << 26  # size of the arrays that are written together


def import_model(
  path: str, to: str, *, adapter: str = "", scan_layers: bool = False
) -> None:
  """Converts a model to a workdir that stages can start from.

  Args:
    path: a Hugging Face directory, or a GGUF file.
    to: workdir to create; must not exist.
    adapter: a PEFT directory, whose adapters are merged into the model; "" for
      none.
    scan_layers: whether to stack the arrays of all layers, which are then in
      memory together.

  Raises:
    UserError: the model is invalid; nothing is written.
  """
  _check_importable(path)
  target = _check_new(to)
  stage = stage_model.open_stage(path, field="--from", adapter=adapter)
  for note in (*stage.source.notes, *stage.tokenizer.notes):
    log_line(f"{path}: {note}")
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
      _load_in_parts(stage),
      stage_model.model_info(
        stage.kind,
        stage.model_config,
        stage.data,
        origin=stage.origin,
        stage="import",
        step=0,
      ),
    )
    files.mark_complete(
      scratch,
      {
        "imported": stage.source.family.model_type,
        model_card.SOURCE: pathlib.Path(path).absolute().name,
      },
    )
    with files.disk_errors_as_user_errors(target):
      os.rename(scratch, target)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def _check_importable(path: str) -> None:
  """Refuses what is neither a Hugging Face directory nor a GGUF file."""
  if gguf_header.is_gguf(path):
    return
  fix = "use a directory that save_pretrained wrote, or a GGUF file"
  directory = pathlib.Path(path)
  if not directory.is_dir():
    raise stage_errors.no_directory(path, "--from", fix=fix)
  if not hf.is_hub_directory(path):
    files = sorted(directory.glob(f"*{gguf_header.SUFFIX}"))
    raise UserError(
      "contains no config.json of a model",
      file=path,
      field="--from",
      fix=f"use {files[0]}" if files else fix,
      code="no_config",
    )


def _load_in_parts(stage: stage_model.Stage) -> Iterator[Any]:
  """Yields the parameters in parts of about _PART_BYTES."""
  tree = unbox(abstract_params(stage.network))
  part: dict[str, Any] = {}
  part_size = 0
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    size = leaf.size * leaf.dtype.itemsize
    if part and part_size + size > _PART_BYTES:
      yield stage.params(part)
      part, part_size = {}, 0
    node = part
    for key in path[:-1]:
      node = node.setdefault(key.key, {})
    node[path[-1].key] = leaf
    part_size += size
  yield stage.params(part)


class _MergedLeaves(Mapping[str, Any]):
  """Mapping of a stage's paths to arrays, with LoRA adapters merged.

  Arrays are read on access; only the last one is kept in memory.
  """

  def __init__(self, stage: stage_model.Stage):
    self._read_tree = stage.reader()
    self._shapes = hf.flatten_leaves(unbox(abstract_params(stage.network)))
    self._base, self._scale = None, 0.0
    if stage.base is not None:
      c = stage.model_config
      self._scale = c.lora_alpha / (c.lora_rank or 1)
      self._base = _MergedLeaves(stage.base)
      stage.check(self._base)
    self._last: tuple[str, Any] = ("", None)

  def __getitem__(self, path: str) -> Any:
    if path not in self._shapes:
      raise KeyError(path)
    if self._last[0] != path:
      self._last = ("", None)
      self._last = (path, self._compute(path))
    return self._last[1]

  def _compute(self, path: str) -> Any:
    if self._base is None or path not in self._base:
      return self._read_leaf(path)
    layer, _, leaf = path.rpartition("/")
    kernel = self._base[path]
    if leaf == "kernel" and f"{layer}/{lora.UP}" in self._shapes:
      down, up = (self._read_leaf(f"{layer}/{n}") for n in (lora.DOWN, lora.UP))
      scanned = "/blocks/" in path
      kernel = lora.apply_lora(kernel, down, up, self._scale, scanned)
    return kernel

  def _read_leaf(self, path: str) -> Any:
    """Reads an array of the stage itself, without its base model."""
    tree = self._read_tree(trees.unflatten_dict({path: self._shapes[path]}))
    return hf.flatten_leaves(tree)[path]

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
  """Converts a workdir to a directory that `transformers` loads.

  Args:
    path: workdir of a finished stage, or a GGUF file.
    to: directory to create; must not exist.
    dtype: dtype of the tensors; "" is the dtype of the directory that training
      started from, or float32 if it started from scratch.
    file_size: maximum size of a tensor file in bytes.
    adapters: whether to write only the LoRA adapters, for PEFT, instead of
      merging them.
    base: base model that PEFT loads; "" is the Hugging Face directory that
      training started from.

  Returns:
    The name of the written model's class.
  """
  _check_new(to)
  stage = stage_model.open_stage(path, field="--from")
  origin = stage.origin
  if not dtype and origin and origin.dtype != "float32":
    log_line(
      f"{to}: written in {origin.dtype}, the base model's dtype;"
      " --dtype=float32 avoids rounding"
    )
  dtype = dtype or (origin.dtype if origin else "float32")
  if adapters:
    _export_adapters(stage, to, base, dtype)
    return "adapter"
  special = exported_tokens.export(
    stage.tokenizer, needs_pad=stage.kind == stage_model.SCALAR
  )
  tokenizer_files = special.files
  if stage.kind == stage_model.SCALAR:
    if special.adds_pad:
      log_line(f"{to}: added the padding token {special.pad}")
    if stage.has_prompts:
      tokenizer_files = reward_template.add_template(
        tokenizer_files, stage.tokenizer, stage.data
      )
  family = hf.save(
    to,
    _MergedLeaves(stage),
    dataclasses.replace(stage.model_config, lora_rank=None),
    tokenizer_files | model_card.build_files(stage, pathlib.Path(to).name),
    ids=special.ids,
    dtype=dtype,
    max_file_size=file_size,
    origin=origin,
  )
  other = exported_tokens.reads_otherwise(special.files, family.model_type)
  if other:
    log_line(
      f"{to}: AutoTokenizer of transformers 5 would load {other} for every"
      f" {family.model_type} model; use PreTrainedTokenizerFast instead"
    )
  if stage.kind == stage_model.LANGUAGE:
    return family.lm_class
  return family.reward_class


def _export_adapters(
  stage: stage_model.Stage, to: str, base: str, dtype: str
) -> None:
  if stage.base is None:
    raise UserError(
      "has no LoRA adapters",
      file=stage.path,
      field="--adapters",
      fix="export it without --adapters",
      code="no_adapters",
    )
  if not base and not hf.is_hub_directory(stage.base.path):
    kind = "a workdir" if stage.base.source is None else "a GGUF file"
    raise UserError(
      f"the adapters' base model is {stage.base.path}, {kind}, which PEFT"
      " cannot load",
      field="--base",
      fix="export the base model too, and pass its directory as --base",
      code="base_is_workdir",
    )
  exported = exported_tokens.export(stage.tokenizer, needs_pad=False)
  if stage.kind == stage_model.SCALAR and "pad_token_id" not in exported.ids:
    log_line(
      f"{to}: the base model has no padding token; score one text at a time,"
      " or export without --adapters"
    )
  _, trained = lora.split(
    stage.model_config, unbox(abstract_params(stage.network))
  )
  peft.save(
    to,
    hf.flatten_leaves(stage.reader()(trained)),
    stage.model_config,
    exported.files
    | model_card.build_files(stage, pathlib.Path(to).name, adapters=True),
    base=base or os.path.abspath(stage.base.path),
    dtype=dtype,
  )


def _check_new(path: str) -> pathlib.Path:
  target = pathlib.Path(path).absolute()
  if target.exists():
    raise UserError(
      "exists already",
      file=path,
      field="--to",
      fix="choose another directory",
      code="output_exists",
    )
  return target


def _parse_size(text: str) -> int:
  units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
  unit = units.get(text[-2:].upper())
  try:
    size = round(float(text[:-2]) * unit) if unit else int(text)
  except ValueError:
    size = 0
  if size < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB")
  return size


# Flags that only one of the commands has.
_FLAGS = {
  "import": ("adapter", "scan_layers"),
  "export": ("adapters", "base", "dtype", "file_size"),
}


def _parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = CommandParser(
    prog="python -m instructgpt_jax.hub",
    description=__doc__,
  )
  parser.add_argument(
    "command",
    choices=("import", "export"),
    help="direction: from or to a Hugging Face directory",
  )
  add = parser.add_argument
  add(
    "--from",
    required=True,
    dest="source",
    metavar="PATH",
    help="what to read: a Hugging Face directory or a GGUF file (import), or a"
    " workdir or a GGUF file (export)",
  )
  add(
    "--to",
    required=True,
    metavar="DIR",
    help="directory to create; must not exist",
  )
  add(
    "--adapter",
    default="",
    metavar="DIR",
    help="import: PEFT directory whose adapters are merged into the model",
  )
  add(
    "--scan_layers",
    action="store_true",
    help="import: stack the arrays of all layers, for runs with"
    " --model.scan_layers; needs memory for all layers at once",
  )
  add(
    "--dtype",
    choices=tuple(tensors.DTYPES),
    default="",
    help="export: dtype of the tensors (default: the dtype of the directory"
    " that training started from, else float32)",
  )
  add(
    "--file_size",
    type=_parse_size,
    default=5 * 10**9,
    metavar="SIZE",
    help="export: maximum size of a tensor file (default: 5GB)",
  )
  add(
    "--adapters",
    action="store_true",
    help="export: write only the LoRA adapters, for PEFT (runs with"
    " --model.lora_rank)",
  )
  add(
    "--base",
    default="",
    metavar="DIR",
    help="export --adapters: path or name of the base model that PEFT loads"
    " (default: the Hugging Face directory that training started from)",
  )
  flags = parser.parse_args(argv)
  other = "export" if flags.command == "import" else "import"
  for name in _FLAGS[other]:
    if getattr(flags, name) != parser.get_default(name):
      raise UserError(
        f"is a flag of {other}, not of {flags.command}",
        field=f"--{name}",
        fix="see --help",
        code="bad_flags",
      )
  return flags


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command and returns the exit status; 2 for a user error."""

  def run() -> None:
    flags = _parse_flags(argv)
    process_settings.silence_libraries()
    if flags.command == "import":
      import_model(
        flags.source,
        flags.to,
        adapter=flags.adapter,
        scan_layers=flags.scan_layers,
      )
      print(f"{flags.to}: ready; use it as --init_from", file=sys.stderr)
      return
    name = export_model(
      flags.source,
      flags.to,
      dtype=flags.dtype,
      file_size=flags.file_size,
      adapters=flags.adapters,
      base=flags.base,
    )
    print(f"{flags.to}: wrote a {name}", file=sys.stderr)

  return launch.run_with_errors(run)


if __name__ == "__main__":
  sys.exit(main())
