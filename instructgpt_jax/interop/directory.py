"""A model's directory: config.json, tensors and tokenizer files."""

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
# Tables that older versions saved although they follow from the configuration.
_DERIVED = re.compile(
  r"(\.attn\.(bias|masked_bias)|\.attention\.(bias|masked_bias)"
  r"|rotary_emb\.inv_freq)$"
)


@dataclasses.dataclass(frozen=True)
class Source:
  """A directory that has been looked at, but for its tensors' values."""

  path: str
  family: families.Family
  config: Model
  scalar: bool  # a reward model
  shift: float  # added to the scores of a reward model
  tensors: Mapping[str, tensors.Tensor]
  origin: settings.Origin


def is_folder(path: str | os.PathLike[str]) -> bool:
  """Whether a folder is such a directory: its config.json says what it is."""
  try:
    raw = json.loads((pathlib.Path(path) / CONFIG).read_bytes())
  except (OSError, ValueError):
    return False
  return isinstance(raw, dict) and (
    "model_type" in raw or "architectures" in raw
  )


def look(path: str | os.PathLike[str]) -> Source:
  """Reads a directory's configuration and the headers of its files.

  Raises:
    UserError: it is not supported, or its tensors are not those of its
      configuration.
  """
  folder = pathlib.Path(path)
  file = folder / CONFIG
  raw = _read_json(file)
  try:
    family = families.named(raw.get("model_type"))
    _refuse_quantised(raw)
    scalar = _is_scalar(raw, family)
    config = family.model(raw)
  except UserError as error:
    raise UserError(
      error.problem,
      file=str(file),
      field=error.field,
      fix=error.fix,
      code=error.code or "bad_config",
    ) from error
  found = _checked(folder, family, config, scalar)
  generation = {}
  if (folder / GENERATION).exists():
    generation = _read_json(folder / GENERATION)
  origin = settings.Origin(raw, generation, settings.saved_dtype(found))
  return Source(
    str(path), family, config, scalar, float(raw.get(SHIFT, 0.0)), found, origin
  )


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  """A JSON table of a directory.

  Raises:
    UserError: the file is something else.
  """
  content = b""
  try:
    content = file.read_bytes()
    value = json.loads(content)
    if not isinstance(value, dict):
      raise ValueError("it is no table")
  except (OSError, ValueError, RecursionError) as error:
    tensors.refuse_other(file, content)
    raise UserError(
      f"cannot be read ({error})",
      file=str(file),
      fix="give a folder that save_pretrained wrote",
      code="bad_config",
    ) from error
  return value


def _refuse_quantised(raw: Mapping[str, Any]) -> None:
  quantised = raw.get("quantization_config")
  if quantised:
    method = ""
    if isinstance(quantised, dict) and quantised.get("quant_method"):
      method = f" ({quantised['quant_method']})"
    raise UserError(
      f"its weights are quantised{method}, which is not supported",
      field="quantization_config",
      fix="give the model that was quantised",
      code="quantised_model",
    )


def _is_scalar(raw: Mapping[str, Any], family: families.Family) -> bool:
  names = raw.get("architectures") or [family.language]
  name = str(names[0] if isinstance(names, list) else names)
  for other in families.FAMILIES.values():
    if name in (other.language, other.scalar) and name not in (
      family.language,
      family.scalar,
    ):
      raise UserError(
        f"is {name}, but model_type is {family.kind!r}",
        field="architectures",
        fix="give the config.json that the model was saved with",
        code="contradicting_config",
      )
  if name.endswith(_SCALAR):
    labels = raw.get("num_labels", len(raw.get("id2label") or [0]))
    if labels != 1:
      raise UserError(
        f"has {labels} labels; a reward model has 1",
        field="num_labels" if "num_labels" in raw else "id2label",
        fix="give a model with one score",
        code="bad_config_value",
      )
    return True
  if not name.endswith(_LANGUAGE):
    raise UserError(
      f"{name} is neither a language model nor a reward model",
      field="architectures",
      fix=f"give a {family.language} or a {family.scalar}",
      code="bad_config_value",
    )
  return False


def expanded(
  family: families.Family, c: Model, scalar: bool
) -> Iterator[tuple[mapping.Weight, int, str]]:
  """(tensor, layer, name) of each tensor; the layer of what has none is 0."""
  for weight in mapping.weights(family, c, scalar=scalar):
    for layer in range(c.num_layers if "{}" in weight.theirs else 1):
      yield weight, layer, weight.theirs.format(layer)


def _checked(
  folder: pathlib.Path, family: families.Family, c: Model, scalar: bool
) -> dict[str, tensors.Tensor]:
  """The model's tensors, each of which is there and has its shape."""
  extent = mapping.sizes(c, c.vocab_size)
  wanted = {
    name: weight.shape(extent)
    for weight, _, name in expanded(family, c, scalar)
  }
  found = _renamed(tensors.find(folder), family, wanted)
  what = family.scalar if scalar else family.language
  fix = f"give a whole {what}, which config.json says this is"
  for name, shape in wanted.items():
    if name not in found:
      raise UserError(
        f"the tensor {name} is missing",
        file=str(folder),
        fix=fix,
        code="missing_tensor",
      )
    tensor = found[name]
    if tensor.shape != shape or not tensors.is_float(tensor):
      raise UserError(
        f"the tensor {name} is {tensor.kind} {list(tensor.shape)}, not a float"
        f" {list(shape)}",
        file=tensor.file,
        fix=fix,
      )
  heads = (f"{family.unembedding}.weight", f"{family.unembedding}.bias")
  head = found.get(heads[0])
  if c.tie_embeddings and head is not None and not scalar:
    embedding = found[f"{family.prefix}{family.names['embedding']}.weight"]
    if not tensors.same_samples(embedding, head):
      raise UserError(
        f"is true, but {heads[0]} is unlike the embedding",
        file=str(folder / CONFIG),
        field="tie_word_embeddings",
        fix="set it to false if the model was trained so",
        code="contradicting_config",
      )
  for name, tensor in found.items():
    spare = _DERIVED.search(name) or (
      name in heads and (scalar or c.tie_embeddings)
    )
    if name not in wanted and not spare:
      raise UserError(
        f"the tensor {name} has no place in a {what}",
        file=tensor.file,
        fix="give a model of an architecture in docs/models.md",
      )
  return {name: found[name] for name in wanted}


def _renamed(
  found: dict[str, tensors.Tensor],
  family: families.Family,
  wanted: Mapping[str, Any],
) -> dict[str, tensors.Tensor]:
  """Tensors by the names of the whole model, also if the decoder was saved."""
  renamed = {
    re.sub(r"^lm_head\.", f"{family.unembedding}.", name): tensor
    for name, tensor in found.items()
  }
  first = next(iter(wanted))
  parts = family.prefix.split(".")[:-1]
  for i in range(len(parts) + 1):
    ahead = "".join(f"{part}." for part in parts[:i])
    if first.removeprefix(ahead) in renamed:
      return {
        name
        if name.startswith((family.unembedding, "score."))
        else ahead + name: tensor
        for name, tensor in renamed.items()
      }
  return renamed


def load(source: Source, abstract: PyTree) -> PyTree:
  """The parameters, read straight to where they will lie.

  Args:
    source: the directory.
    abstract: our tree of shapes, of a language model or a scalar model as the
      source is; a leaf's sharding is where it lies, without one on the default
      device. Each device's part of an array is read by itself.
  """
  c = source.config
  extent = mapping.sizes(c, c.vocab_size)
  pieces: dict[str, list[tuple[mapping.Weight, tensors.Tensor]]] = {}
  for weight, layer, name in expanded(source.family, c, source.scalar):
    path = weight.leaf.replace(mapping.BLOCK, f"blocks_{layer}")
    pieces.setdefault(path, []).append((weight, source.tensors[name]))

  def values(path: str, shape: tuple[int, ...], index: Any) -> np.ndarray:
    region = [
      slice(*s.indices(size)[:2]) for s, size in zip(index, shape, strict=True)
    ]
    if path == "head/bias":
      return np.full([s.stop - s.start for s in region], source.shift, "f4")
    if "/blocks/" not in path:
      return mapping.fill(pieces[path], extent, region)
    layers, *inside = region
    return np.stack(
      [
        mapping.fill(
          pieces[path.replace("/blocks/", f"/blocks_{i}/")], extent, inside
        )
        for i in range(layers.start, layers.stop)
      ]
    )

  def leaf(path: Any, x: Any) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    sharding = getattr(x, "sharding", None)
    if sharding is None:
      sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    made: dict[str, np.ndarray] = {}  # devices that hold the same read once

    def part(index: Any) -> np.ndarray:
      if str(index) not in made:
        made[str(index)] = values(name, x.shape, index)
      return made[str(index)]

    return jax.make_array_from_callback(x.shape, sharding, part)

  return jax.tree_util.tree_map_with_path(leaf, abstract)


def save(
  path: str | os.PathLike[str],
  leaves: Mapping[str, Any],
  config: Model,
  files: Mapping[str, bytes],
  *,
  ids: Mapping[str, Any],
  dtype: str = "float32",
  most: int = 5_000_000_000,
  origin: settings.Origin | None = None,
) -> families.Family:
  """Writes a directory that `transformers` loads; whole or not at all.

  Args:
    path: the directory, which must not be there.
    leaves: path → array, of a language model or of a scalar model, which
      becomes a ...ForSequenceClassification; each is asked for when it is
      written.
    config: the network.
    files: of the tokenizer, name → bytes.
    ids: eos_token_id, and pad_token_id and bos_token_id where there are such.
      A reward model gets a row for its padding, which no text has.
    dtype: of the tensors.
    most: bytes of a file.
    origin: what the network was trained from, whose settings are kept.

  Returns:
    The family that it was written as.
  """
  own = origin.family(config) if origin else None
  family = own or families.holding(config)
  scalar = "head/kernel" in leaves
  vocabulary = config.vocab_size
  extra: dict[str, Any] = {"architectures": [family.language]}
  if scalar:
    vocabulary = max(vocabulary, ids.get("pad_token_id", -1) + 1)
    leaves, shift = _folded(leaves)
    extra = {
      "architectures": [family.scalar],
      "id2label": {"0": "reward"},
      "label2id": {"reward": 0},
      SHIFT: shift,
    }
  extent = mapping.sizes(config, vocabulary)

  def make(weight: mapping.Weight, layer: int) -> np.ndarray:
    return mapping.take(weight, leaf_of(leaves, weight.leaf, layer), extent)

  news = [
    tensors.New(name, weight.shape(extent), functools.partial(make, weight, i))
    for weight, i, name in expanded(family, config, scalar)
  ]
  kept = origin if own else None
  described = settings.config_json(
    family, config, kept, rows=vocabulary, ids=ids, dtype=dtype
  )
  with written(path) as scratch:
    for name, content in files.items():
      (scratch / name).write_bytes(content)
    _write_json(scratch / CONFIG, described | extra)
    if not scalar:
      generation = settings.generation_json(origin, rows=vocabulary, ids=ids)
      _write_json(scratch / GENERATION, generation)
    tensors.write(scratch, news, dtype, most)
  return family


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """A folder to write in, which is then called `path`; whole or not at all."""
  folder = pathlib.Path(path).absolute()
  if folder.exists():
    raise UserError("exists already", file=str(path), fix="name another folder")
  scratch = folder.with_name(f".{folder.name}.next")
  shutil.rmtree(scratch, ignore_errors=True)
  try:
    scratch.mkdir(parents=True)
    yield scratch
    os.rename(scratch, folder)
  except OSError as error:
    raise UserError(
      f"could not be written: {error.strerror or error}",
      file=str(path),
      fix="see that the disk has space and that you may write there",
    ) from error
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def flattened(params: PyTree) -> dict[str, Any]:
  """Path → array of each leaf."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
  }


def leaf_of(leaves: Mapping[str, Any], path: str, layer: int) -> np.ndarray:
  """An array (of one layer) by its path in `mapping`."""
  name = path.replace(mapping.BLOCK, f"blocks_{layer}")
  if name in leaves:
    return np.asarray(leaves[name])
  return np.asarray(leaves[path.replace(mapping.BLOCK, "blocks")][layer])


def _folded(leaves: Mapping[str, Any]) -> tuple[Mapping[str, Any], float]:
  """A scalar model whose head has no bias, and what is left of the bias.

  The last LayerNorm's bias moves along the head's kernel until the score is
  the same without the head's bias. An RMSNorm has none: the bias stays.
  """
  norm = "transformer/final_norm/bias"
  kernel = leaves["head/kernel"]
  bias = leaves["head/bias"][0]
  if norm not in leaves:
    return leaves, float(bias)
  moved = leaves[norm] + bias * kernel[:, 0] / (kernel**2).sum()
  return collections.ChainMap({norm: moved}, leaves), 0.0
