"""Builds config.json and generation_config.json of an exported directory.

A model that was trained from a Hugging Face directory keeps that directory's
settings: maximum length, RoPE, sampling and stop tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from instructgpt_jax.configs import Model
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import families, tensors

# Keys of the base model's config.json that an export does not copy: its origin,
# code that is not exported, and what the export itself decides.
_DROPPED = (
  "_name_or_path",
  "auto_map",
  "dtype",
  "id2label",
  "label2id",
  "num_labels",
  "problem_type",
  "torch_dtype",
)


class Origin(NamedTuple):
  """Settings of the Hugging Face directory that training started from.

  Attributes:
    config: content of config.json.
    generation: content of generation_config.json; empty if there is none.
    dtype: dtype of the tensors, a name in `tensors.DTYPES`.
  """

  config: dict[str, Any]
  generation: dict[str, Any]
  dtype: str

  def family_for(self, c: Model) -> families.Family | None:
    """Returns the directory's family, or None if the network has changed."""
    try:
      family = families.get_family(self.config.get("model_type"))
      before = families.canonicalize(family.to_native(self.config))
    except UserError:
      return None
    context = before.max_seq_len if c.pos_emb == "rope" else c.max_seq_len
    after = dataclasses.replace(
      c, max_seq_len=context, vocab_size=before.vocab_size
    )
    return family if families.canonicalize(after) == before else None


def saved_dtype(headers: Mapping[str, tensors.ReadableTensor]) -> str:
  """Returns the most frequent dtype of a directory's tensors."""
  dtypes = [tensor.dtype for tensor in headers.values()]
  names = {dtype: name for name, dtype in tensors.DTYPES.items()}
  most_frequent = max(sorted(set(dtypes)), key=dtypes.count, default="")
  return names.get(most_frequent, "float32")


def build_config_json(
  family: families.Family,
  c: Model,
  origin: Origin | None,
  *,
  vocab_size: int,
  ids: Mapping[str, Any],
  dtype: str,
) -> dict[str, Any]:
  """Builds config.json, except for the entries of the model's head.

  Args:
    family: the architecture.
    c: the model's config.
    origin: settings that training started from; None if it started from
      scratch or `family` is another family.
    vocab_size: number of embedding rows.
    ids: eos_token_id, and pad_token_id and bos_token_id if they exist.
    dtype: dtype of the tensors.
  """
  if origin is None:
    config = family.to_hf(families.canonicalize(c))
  else:
    config = {k: v for k, v in origin.config.items() if k not in _DROPPED}
  config |= {"vocab_size": vocab_size, "dtype": dtype}
  # An explicit None overrides the class's default id, which may be too large.
  unset = {"bos_token_id": None, "pad_token_id": None}
  return config | unset | _build_token_ids(config, origin, vocab_size, ids)


def build_generation_json(
  origin: Origin | None, *, vocab_size: int, ids: Mapping[str, Any]
) -> dict[str, Any]:
  """Builds generation_config.json: the base's settings, the export's ids.

  Args:
    origin: see `build_config_json`.
    vocab_size: number of embedding rows.
    ids: see `build_config_json`.
  """
  settings = dict(origin.generation) if origin else {}
  for key in ("bos_token_id", "pad_token_id"):
    settings.pop(key, None)
  return settings | _build_token_ids(settings, origin, vocab_size, ids)


def _build_token_ids(
  table: Mapping[str, Any],
  origin: Origin | None,
  vocab_size: int,
  ids: Mapping[str, Any],
) -> dict[str, Any]:
  """Builds the entries of special tokens; padding is never a stop token.

  Other ids in the table, such as decoder_start_token_id, become None if they
  exceed the vocabulary.
  """
  bases = (origin.generation, origin.config) if origin else ()
  pad = next(iter(_id_list(ids.get("pad_token_id"))), None)
  stops = _id_list(ids["eos_token_id"])
  pad = None if pad in stops else pad
  starts = _id_list(ids.get("bos_token_id"))
  for base in bases:
    stops += _id_list(base.get("eos_token_id"))
    starts += _id_list(base.get("bos_token_id"))
  stops = [i for i in dict.fromkeys(stops) if i < vocab_size and i != pad]
  entries: dict[str, Any] = {
    key: None
    for key, value in table.items()
    if key.endswith("_token_id")
    and value is not None
    and max(_id_list(value), default=vocab_size) >= vocab_size
  }
  if starts and starts[0] < vocab_size:
    entries["bos_token_id"] = starts[0]
  entries["eos_token_id"] = stops if len(stops) > 1 else next(iter(stops), None)
  if pad is not None and pad < vocab_size:
    entries["pad_token_id"] = pad
  return entries


def _id_list(value: Any) -> list[int]:
  """Returns the ids of an entry, which is a number or a list."""
  values = value if isinstance(value, list) else [value]
  return [i for i in values if type(i) is int and i >= 0]
