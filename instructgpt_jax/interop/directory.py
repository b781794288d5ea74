"""Reads and writes Hugging Face model directories.

A directory has config.json, safetensors files and the tokenizer's files.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from instructgpt_jax.configs import Model
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import families, mapping, settings, tensors
from instructgpt_jax.types import PyTree

CONFIG = "config.json"
GENERATION = "generation_config.json"
SHIFT = "instructgpt_jax_score_shift"
_SCALAR = "ForSequenceClassification"
_LANGUAGE = ("ForCausalLM", "LMHeadModel", "Model")
# Tensors that older versions of transformers saved although config.json
# determines them.
_DERIVED = re.compile(
  r"(\.attn\.(bias|masked_bias)|\.attention\.(bias|masked_bias)"
  r"|rotary_emb\.inv_freq)$"
)


@dataclasses.dataclass(frozen=True)
class HubCheckpoint:
  """A model in the terms of a Hugging Face directory, read and checked.

  Attributes:
    path: the directory, or the GGUF file.
    family: its architecture.
    config: its network.
    scalar: whether it is a reward model.
    shift: constant that is added to a reward model's scores.
    tensors: name in the Hugging Face model → tensor.
    origin: settings that an export keeps.
    notes: what a user should know of how the files were read.
  """

  path: str
  family: families.Family
  config: Model
  scalar: bool
  shift: float
  tensors: Mapping[str, tensors.ReadableTensor]
  origin: settings.Origin
  notes: tuple[str, ...] = ()


def is_hub_directory(path: str | os.PathLike[str]) -> bool:
  """Returns whether a directory has the config.json of a model."""
  try:
    raw = json.loads((pathlib.Path(path) / CONFIG).read_bytes())
  except (OSError, ValueError):
    return False
  return isinstance(raw, dict) and (
    "model_type" in raw or "architectures" in raw
  )


def inspect(path: str | os.PathLike[str]) -> HubCheckpoint:
  """Reads a directory's config.json and the headers of its tensor files.

  Raises:
    UserError: the model is not supported, or its tensors do not match its
      config.json.
  """
  directory = pathlib.Path(path)
  file = directory / CONFIG
  raw = read_json(file)
  try:
    family = families.get_family(raw.get("model_type"))
    _refuse_quantised(raw)
    scalar = _is_scalar(raw, family)
    config = family.to_native(raw)
  except UserError as error:
    raise UserError(
      error.problem,
      file=str(file),
      field=error.field,
      fix=error.fix,
      code=error.code or "bad_config",
    ) from error
  headers = check_tensors(
    tensors.find_tensors(directory), family, config, scalar, str(directory)
  )
  generation = {}
  if (directory / GENERATION).exists():
    generation = read_json(directory / GENERATION)
  return HubCheckpoint(
    path=str(path),
    family=family,
    config=config,
    scalar=scalar,
    shift=float(raw.get(SHIFT, 0.0)),
    tensors=headers,
    origin=settings.Origin(raw, generation, settings.saved_dtype(headers)),
  )


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object from a file.

  Raises:
    UserError: the file is missing or contains something else.
  """
  content = b""
  try:
    content = file.read_bytes()
    value = json.loads(content)
    if not isinstance(value, dict):
      raise ValueError("it is not a JSON object")
  except (OSError, ValueError, RecursionError) as error:
    tensors.raise_if_other_file_type(file, content)
    raise UserError(
      f"cannot be read ({error})",
      file=str(file),
      fix="use a directory that save_pretrained wrote",
      code="bad_config",
    ) from error
  return value


def _refuse_quantised(raw: Mapping[str, Any]) -> None:
  quantization = raw.get("quantization_config")
  if quantization:
    method = ""
    if isinstance(quantization, dict) and quantization.get("quant_method"):
      method = f" ({quantization['quant_method']})"
    raise UserError(
      f"the weights are quantised{method}, which is not supported",
      field="quantization_config",
      fix="use the original model that was quantised",
      code="quantised_model",
    )


def _is_scalar(raw: Mapping[str, Any], family: families.Family) -> bool:
  """Returns whether config.json describes a reward model."""
  names = raw.get("architectures") or [family.lm_class]
  name = str(names[0] if isinstance(names, list) else names)
  for other in families.FAMILIES.values():
    if name in (other.lm_class, other.reward_class) and name not in (
      family.lm_class,
      family.reward_class,
    ):
      raise UserError(
        f"is {name}, but model_type is {family.model_type!r}",
        field="architectures",
        fix="use the config.json that the model was saved with",
        code="contradicting_config",
      )
  if name.endswith(_SCALAR):
    labels = raw.get("num_labels", len(raw.get("id2label") or [0]))
    if labels != 1:
      raise UserError(
        f"has {labels} labels; a reward model has 1",
        field="num_labels" if "num_labels" in raw else "id2label",
        fix="use a model with one score",
        code="bad_config_value",
      )
    return True
  if not name.endswith(_LANGUAGE):
    raise UserError(
      f"{name} is neither a language model nor a reward model",
      field="architectures",
      fix=f"use a {family.lm_class} or a {family.reward_class}",
      code="bad_config_value",
    )
  return False


def expand_layers(
  family: families.Family, c: Model, scalar: bool
) -> Iterator[tuple[mapping.Weight, int, str]]:
  """Yields (weight, layer, tensor name); layer is 0 outside the blocks."""
  for weight in mapping.list_weights(family, c, scalar=scalar):
    for layer in range(c.num_layers if "{}" in weight.hf_name else 1):
      yield weight, layer, weight.hf_name.format(layer)


def check_tensors(
  headers: Mapping[str, tensors.ReadableTensor],
  family: families.Family,
  c: Model,
  scalar: bool,
  path: str,
) -> dict[str, tensors.ReadableTensor]:
  """Returns the model's tensors, after a check that each has its shape.

  Args:
    headers: name → tensor.
    family: the architecture.
    c: the network.
    scalar: whether it is a reward model.
    path: the directory or file, for errors.

  Raises:
    UserError: a tensor is missing, unexpected, or has another shape.
  """
  axis_sizes = mapping.axis_sizes(c, c.vocab_size)
  shapes = {
    name: weight.hf_shape(axis_sizes)
    for weight, _, name in expand_layers(family, c, scalar)
  }
  headers = _use_full_names(headers, family, shapes)
  class_name = family.reward_class if scalar else family.lm_class
  fix = f"use a complete {class_name}, as config.json describes"
  for name, shape in shapes.items():
    if name not in headers:
      raise UserError(
        f"tensor {name} is missing",
        file=path,
        fix=fix,
        code="missing_tensor",
      )
    tensor = headers[name]
    if tensor.shape != shape or not tensors.is_float(tensor):
      raise UserError(
        f"tensor {name} is {tensor.dtype} {list(tensor.shape)}, not a float"
        f" {list(shape)}",
        file=tensor.file,
        fix=fix,
        code="tensor_shape",
      )
  heads = (f"{family.unembedding}.weight", f"{family.unembedding}.bias")
  if c.tie_embeddings and heads[0] in headers and not scalar:
    _check_tied(family, headers, heads[0], path)
  for name, tensor in headers.items():
    ignored = _DERIVED.search(name) or (
      name in heads and (scalar or c.tie_embeddings)
    )
    if name not in shapes and not ignored:
      raise UserError(
        f"unexpected tensor {name}: a {class_name} has none",
        file=tensor.file,
        fix="use an architecture that docs/models.md lists",
        code="unexpected_tensor",
      )
  return {name: headers[name] for name in shapes}


def _check_tied(
  family: families.Family,
  headers: Mapping[str, tensors.ReadableTensor],
  head: str,
  path: str,
) -> None:
  """Refuses an output matrix that differs from the embedding it repeats."""
  name = f"{family.prefix}{family.names['embedding']}.weight"
  if not tensors.same_samples(headers[name], headers[head]):
    raise UserError(
      f"is true, but {head} differs from the embedding",
      file=f"{path}{os.sep}{CONFIG}",
      field="tie_word_embeddings",
      fix="set it to false if the model has a separate output matrix",
      code="contradicting_config",
    )


def _use_full_names(
  headers: Mapping[str, tensors.ReadableTensor],
  family: families.Family,
  shapes: Mapping[str, Any],
) -> dict[str, tensors.ReadableTensor]:
  """Renames tensors as in the full model if only its decoder was saved."""
  renamed = {
    re.sub(r"^lm_head\.", f"{family.unembedding}.", name): tensor
    for name, tensor in headers.items()
  }
  first = next(iter(shapes))
  parts = family.prefix.split(".")[:-1]
  for i in range(len(parts) + 1):
    prefix = "".join(f"{part}." for part in parts[:i])
    if first.removeprefix(prefix) in renamed:
      return {
        name
        if name.startswith((family.unembedding, "score."))
        else prefix + name: tensor
        for name, tensor in renamed.items()
      }
  return renamed


def load(source: HubCheckpoint, abstract: PyTree) -> PyTree:
  """Reads the parameters directly into their shards.

  Args:
    source: the inspected directory.
    abstract: native tree of shapes, of a language model or a scalar model like
      the source. A leaf without a sharding goes to the default device. Each
      shard is read separately.
  """
  c = source.config
  axis_sizes = mapping.axis_sizes(c, c.vocab_size)
  pieces: dict[str, list[tuple[mapping.Weight, tensors.ReadableTensor]]] = {}
  for weight, layer, name in expand_layers(source.family, c, source.scalar):
    path = weight.native_path.replace(mapping.BLOCK, f"blocks_{layer}")
    pieces.setdefault(path, []).append((weight, source.tensors[name]))

  def values(path: str, shape: tuple[int, ...], index: Any) -> np.ndarray:
    region = [
      slice(*s.indices(size)[:2]) for s, size in zip(index, shape, strict=True)
    ]
    if path == "head/bias":
      return np.full([s.stop - s.start for s in region], source.shift, "f4")
    if "/blocks/" not in path:
      return mapping.read_native_region(pieces[path], axis_sizes, region)
    layers, *inside = region
    return np.stack(
      [
        mapping.read_native_region(
          pieces[path.replace("/blocks/", f"/blocks_{i}/")], axis_sizes, inside
        )
        for i in range(layers.start, layers.stop)
      ]
    )

  def leaf(path: Any, x: Any) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    sharding = getattr(x, "sharding", None)
    if sharding is None:
      sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shards: dict[str, np.ndarray] = {}  # a replicated shard is read once

    def shard(index: Any) -> np.ndarray:
      if str(index) not in shards:
        shards[str(index)] = values(name, x.shape, index)
      return shards[str(index)]

    return jax.make_array_from_callback(x.shape, sharding, shard)

  return jax.tree_util.tree_map_with_path(leaf, abstract)


def save(
  path: str | os.PathLike[str],
  leaves: Mapping[str, Any],
  config: Model,
  files: Mapping[str, bytes],
  *,
  ids: Mapping[str, Any],
  dtype: str = "float32",
  max_file_size: int = 5_000_000_000,
  origin: settings.Origin | None = None,
) -> families.Family:
  """Writes a directory that `transformers` loads, atomically.

  Args:
    path: directory to create; must not exist.
    leaves: path → array of a language model or of a scalar model, which becomes
      a ...ForSequenceClassification. Each array is read when it is written.
    config: the model's config.
    files: tokenizer files, name → bytes.
    ids: eos_token_id, and pad_token_id and bos_token_id if they exist. A reward
      model's embedding gets a row for its padding token.
    dtype: dtype of the tensors.
    max_file_size: maximum size of a tensor file in bytes.
    origin: settings of the directory that training started from; the export
      keeps them.

  Returns:
    The family of the written model.
  """
  origin_family = origin.family_for(config) if origin else None
  family = origin_family or families.family_for(config)
  scalar = "head/kernel" in leaves
  vocab_size = config.vocab_size
  extra: dict[str, Any] = {"architectures": [family.lm_class]}
  if scalar:
    vocab_size = max(vocab_size, ids.get("pad_token_id", -1) + 1)
    leaves, shift = _fold_head_bias(leaves)
    extra = {
      "architectures": [family.reward_class],
      "id2label": {"0": "reward"},
      "label2id": {"reward": 0},
      SHIFT: shift,
    }
  axis_sizes = mapping.axis_sizes(config, vocab_size)

  def compute(weight: mapping.Weight, layer: int) -> np.ndarray:
    leaf = get_leaf(leaves, weight.native_path, layer)
    return mapping.extract_hf_tensor(weight, leaf, axis_sizes)

  pending = [
    tensors.PendingTensor(
      name, weight.hf_shape(axis_sizes), functools.partial(compute, weight, i)
    )
    for weight, i, name in expand_layers(family, config, scalar)
  ]
  config_json = settings.build_config_json(
    family,
    config,
    origin if origin_family else None,
    vocab_size=vocab_size,
    ids=ids,
    dtype=dtype,
  )
  with write_atomically(path) as scratch:
    for name, content in files.items():
      (scratch / name).write_bytes(content)
    _write_json(scratch / CONFIG, config_json | extra)
    if not scalar:
      generation = settings.build_generation_json(
        origin, vocab_size=vocab_size, ids=ids
      )
      _write_json(scratch / GENERATION, generation)
    tensors.write(scratch, pending, dtype, max_file_size)
  return family


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a scratch directory that is renamed to `path` on success."""
  target = pathlib.Path(path).absolute()
  if target.exists():
    raise UserError(
      "exists already",
      file=str(path),
      fix="choose another directory",
      code="output_exists",
    )
  scratch = target.with_name(f".{target.name}.next")
  shutil.rmtree(scratch, ignore_errors=True)
  try:
    scratch.mkdir(parents=True)
    yield scratch
    os.rename(scratch, target)
  except OSError as error:
    raise UserError(
      f"could not be written: {error.strerror or error}",
      file=str(path),
      fix="check the free disk space and the write permission",
      code="write_failed",
    ) from error
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def flatten_leaves(params: PyTree) -> dict[str, Any]:
  """Flattens a tree to path → array."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
  }


def get_leaf(leaves: Mapping[str, Any], path: str, layer: int) -> np.ndarray:
  """Returns an array (of one layer) by its path in `mapping`."""
  name = path.replace(mapping.BLOCK, f"blocks_{layer}")
  if name in leaves:
    return np.asarray(leaves[name])
  return np.asarray(leaves[path.replace(mapping.BLOCK, "blocks")][layer])


def _fold_head_bias(
  leaves: Mapping[str, Any],
) -> tuple[Mapping[str, Any], float]:
  """Folds the reward head's bias into the final LayerNorm's bias.

  The LayerNorm's bias moves along the head's kernel, so that scores stay the
  same without the head's bias. RMSNorm has no bias to fold it into.

  Returns:
    The leaves, and the part of the head's bias that remains.
  """
  norm = "transformer/final_norm/bias"
  kernel = leaves["head/kernel"]
  bias = leaves["head/bias"][0]
  if norm not in leaves:
    return leaves, float(bias)
  moved = leaves[norm] + bias * kernel[:, 0] / (kernel**2).sum()
  return collections.ChainMap({norm: moved}, leaves), 0.0
