"""config.json and generation_config.json of an exported directory.

A model that was trained from a directory of `transformers` keeps what that
directory said: its longest context, RoPE settings, sampling settings, stop ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from instructgpt_jax.configs import Model
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import families, tensors

# Keys of a base that do not hold for an export: where it came from, code that
# is not copied, and what the export decides.
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
  """What a directory of `transformers` says beside its tensors.

  Attributes:
    config: its config.json.
    generation: its generation_config.json; empty where there is none.
    dtype: of its tensors, a name of `tensors.NAMES`.
  """

  config: dict[str, Any]
  generation: dict[str, Any]
  dtype: str

  def family(self, c: Model) -> families.Family | None:
    """The directory's own family, where it still describes the network."""
    try:
      family = families.named(self.config.get("model_type"))
      before = families.canonical(family.model(self.config))
    except UserError:
      return None
    context = before.max_seq_len if c.pos_emb == "rope" else c.max_seq_len
    after = dataclasses.replace(
      c, max_seq_len=context, vocab_size=before.vocab_size
    )
    return family if families.canonical(after) == before else None


def saved_dtype(found: Mapping[str, tensors.Tensor]) -> str:
  """The dtype of a directory's tensors: that of most of them."""
  kinds = [tensor.kind for tensor in found.values()]
  names = {kind: name for name, kind in tensors.NAMES.items()}
  most = max(sorted(set(kinds)), key=kinds.count) if kinds else ""
  return names.get(most, "float32")


def config_json(
  family: families.Family,
  c: Model,
  origin: Origin | None,
  *,
  rows: int,
  ids: Mapping[str, Any],
  dtype: str,
) -> dict[str, Any]:
  """config.json, without what depends on the model's head.

  Args:
    family: the architecture.
    c: the network.
    origin: what the network was trained from, if `family` is its family.
    rows: of the embedding.
    ids: eos_token_id, and pad_token_id and bos_token_id where there are such.
    dtype: of the tensors.
  """
  if origin is None:
    described = family.theirs(families.canonical(c))
  else:
    described = {k: v for k, v in origin.config.items() if k not in _DROPPED}
  described |= {"vocab_size": rows, "dtype": dtype}
  # Without an entry, a class's default counts, which may have no row.
  none = {"bos_token_id": None, "pad_token_id": None}
  return described | none | _token_ids(described, origin, rows, ids)


def generation_json(
  origin: Origin | None, *, rows: int, ids: Mapping[str, Any]
) -> dict[str, Any]:
  """generation_config.json: the base's settings and the export's ids.

  Args:
    origin: see `config_json`.
    rows: of the embedding.
    ids: see `config_json`.
  """
  settings = dict(origin.generation) if origin else {}
  for key in ("bos_token_id", "pad_token_id"):
    settings.pop(key, None)
  return settings | _token_ids(settings, origin, rows, ids)


def _token_ids(
  table: Mapping[str, Any],
  origin: Origin | None,
  rows: int,
  ids: Mapping[str, Any],
) -> dict[str, Any]:
  """The entries of special tokens; padding never ends a text.

  Other ids of the table, such as decoder_start_token_id, become None where they
  have no row.
  """
  bases = (origin.generation, origin.config) if origin else ()
  pad = next(iter(_listed(ids.get("pad_token_id"))), None)
  stops = _listed(ids["eos_token_id"])
  pad = None if pad in stops else pad
  starts = _listed(ids.get("bos_token_id"))
  for base in bases:
    stops += _listed(base.get("eos_token_id"))
    starts += _listed(base.get("bos_token_id"))
  stops = [i for i in dict.fromkeys(stops) if i < rows and i != pad]
  found: dict[str, Any] = {
    key: None
    for key, value in table.items()
    if key.endswith("_token_id")
    and value is not None
    and max(_listed(value), default=rows) >= rows
  }
  if starts and starts[0] < rows:
    found["bos_token_id"] = starts[0]
  found["eos_token_id"] = stops if len(stops) > 1 else next(iter(stops), None)
  if pad is not None and pad < rows:
    found["pad_token_id"] = pad
  return found


def _listed(value: Any) -> list[int]:
  """The ids of an entry, which is a number or a list."""
  values = value if isinstance(value, list) else [value]
  return [i for i in values if type(i) is int and i >= 0]
