"""Prepared rankings, prompts and demonstrations, read by index."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import curated_source, encoding, tokenizers
from instructgpt_jax.data.prepared import layout, record_bytes
from instructgpt_jax.data.prepared import manifest as manifest_lib
from instructgpt_jax.data.prepared.manifest import RecordsManifest
from instructgpt_jax.data.prepared.record_bytes import Record, Tokens
from instructgpt_jax.data.prepared.shards import Shards
from instructgpt_jax.data.tokenizers import Tokenizer, exported_tokens
from instructgpt_jax.errors import UserError

LIMITS = ("max_prompt_tokens", "max_response_tokens")
# Settings that a run may leave to the preparation.
CURATION = (
  "valid_fraction",
  "test_fraction",
  "common_prefix_chars",
  "max_prompts_per_user",
  "filter_personal",
)
_T = TypeVar("_T")


class PreparedRecords(Sequence[Record]):
  """The records of one source and split.

  A record is read when it is taken.

  Args:
    directory: the prepared directory.
    manifest: its manifest.
    source: "demonstrations", "comparisons" or "prompts".
    split: "train", "valid" or "test".
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    manifest: RecordsManifest,
    source: str,
    split: str,
  ):
    self._source = source
    self._path = pathlib.Path(directory).expanduser()
    self._files = Shards(self._path, manifest.shards[source][split])
    self._table = manifest.tables[source][split]
    self._token_bytes = manifest.token_bytes

  def __len__(self) -> int:
    return self._files.count

  @overload
  def __getitem__(self, index: int) -> Record: ...
  @overload
  def __getitem__(self, index: slice) -> list[Record]: ...
  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    return self._read(
      index, lambda data: record_bytes.decode_record(data, self._source)
    )

  def tokens(self, index: int) -> Tokens:
    """Returns the token ids of a record."""
    return self._read(
      index, lambda data: record_bytes.decode_tokens(data, self._token_bytes)
    )

  @property
  def labelers(self) -> np.ndarray:
    """The index of each record's labeler, [N]; -1 without one."""
    return self._lengths[:, 0]

  @property
  def token_counts(self) -> np.ndarray:
    """The tokens of each record's prompt and replies, [N, 1 + K].

    It is -1 where a record has fewer than K replies.
    """
    return self._lengths[:, 1:]

  @functools.cached_property
  def _lengths(self) -> np.ndarray:
    """Reads the table.

    Raises:
      UserError: `damaged_shard`.
    """
    path = self._path / self._table.file
    try:
      content = path.read_bytes()
      if len(content) != self._table.size:
        raise ValueError("has another size")
      table = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
      raise manifest_lib.damaged_shard(
        path, f"cannot be read: {error}"
      ) from error
    if manifest_lib.bytes_crc32(content) != self._table.crc32:
      raise manifest_lib.damaged_shard(path, "does not have its checksum")
    return table

  def _read(self, index: int, decode: Callable[[bytes], _T]) -> _T:
    """Reads and decodes a record.

    Raises:
      UserError: `damaged_shard`.
    """
    index = range(len(self))[index]
    (shard,), (position,) = self._files.locate(np.array([index]))
    data = self._files.read(int(shard), int(position))
    try:
      return decode(data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise manifest_lib.damaged_shard(
        self._files.path(int(shard)), f"has a damaged record: {error}"
      ) from error


def is_used(data: configs.Data) -> bool:
  """Returns whether a run reads any source from a prepared directory."""
  return any(_is_prepared(data, name) for name in curated_source.KINDS)


def directories(data: configs.Data) -> list[str]:
  """Returns the prepared directories of a run, each once."""
  specs = [
    getattr(data, name)
    for name in curated_source.KINDS
    if _is_prepared(data, name)
  ]
  return list(dict.fromkeys(specs))


def _is_prepared(data: configs.Data, name: str) -> bool:
  return layout.is_prepared(getattr(data, name))


def open_source(
  name: str, data: configs.Data, tokenizer: Tokenizer | None
) -> curated_source.Curated:
  """Opens one source of a run whose sources are prepared.

  Args:
    name: "demonstrations", "comparisons" or "prompts".
    data: the run's data section.
    tokenizer: the run's tokenizer; None if it is not known yet.

  Raises:
    UserError: `mixed_preparation`, the run's sources were not prepared
      together; `other_tokenizer` or `other_settings`, they were prepared for
      other runs; `missing_source`, `other_kind`, and those of
      `manifest.read_records`.
  """
  field = f"data.{name}"
  if not getattr(data, name):
    curated_source.read(field, data, curated_source.KINDS[name])  # raises
  _require_together(data)
  path = getattr(data, name)
  manifest = manifest_lib.read_records(path, name)
  if name not in manifest.shards:
    raise UserError(
      f"was prepared from {', '.join(manifest.shards)} alone",
      file=path,
      field=field,
      fix=f"prepare all sources of the run together ({manifest_lib.COMMAND}"
      f" --{field}=PATH …), or leave out --{field}",
      code="other_kind",
    )
  _require_same(path, manifest, field, data, tokenizer)
  parts: dict[str, Any] = {
    split: PreparedRecords(path, manifest, name, split)
    for split in manifest.shards[name]
  }
  lines = [f"prepared in {path}: {line}" for line in manifest.lines[name]]
  return curated_source.Curated(parts, lines)


def _require_together(data: configs.Data) -> None:
  """Refuses sources of a run that were not prepared together.

  Their splits do not know each other's prompts.
  """
  first = directories(data)[0]
  for name in curated_source.KINDS:
    spec = getattr(data, name)
    if spec and _real_path(spec) != _real_path(first):
      raise UserError(
        f"was not prepared together with {first}, so that a prompt may be held"
        " out in one of them alone",
        file=spec,
        field=f"data.{name}",
        fix=f"prepare all sources of the run together ({manifest_lib.COMMAND}"
        " --data.comparisons=PATH --data.prompts=PATH"
        " --data.demonstrations=PATH --to=DIR), and give --data."
        f"{name}=DIR",
        code="mixed_preparation",
      )


def _real_path(path: str) -> str:
  return os.path.realpath(os.path.expanduser(path))


def _require_same(
  path: str,
  manifest: RecordsManifest,
  field: str,
  data: configs.Data,
  tokenizer: Tokenizer | None,
) -> None:
  """Refuses records that were prepared for another run."""
  prepared_tokenizer = load_tokenizer(path, data)
  if tokenizer is not None and not exported_tokens.same_ids(
    prepared_tokenizer, tokenizer
  ):
    raise UserError(
      "was prepared with another tokenizer than this run's",
      file=path,
      field=field,
      fix=f"prepare the data with the run's ({manifest_lib.COMMAND}"
      " --tokenizer=PATH, which may be a workdir)",
      code="other_tokenizer",
    )
  expected = text_settings(data, tokenizer or prepared_tokenizer)
  expected |= {
    name: getattr(data, name) for name in CURATION if data.is_explicit(name)
  }
  prepared = manifest.settings
  for name, value in expected.items():
    if prepared.get(name) == value:
      continue
    if name == "template":
      fix = "prepare the data with the run's tokenizer and --data.chat_template"
      what = "another chat template, or without one"
    else:
      old = _flag_text(prepared.get(name))
      fix = (
        f"give --data.{name}={old}, or prepare the data with"
        f" --data.{name}={_flag_text(value)}"
      )
      what = f"data.{name}={old}, and this run has {_flag_text(value)}"
    raise UserError(
      f"was prepared with {what}",
      file=path,
      field=field,
      fix=fix,
      code="other_settings",
    )


def _flag_text(value: Any) -> str:
  is_word = value is None or isinstance(value, bool)
  return str(value).lower() if is_word else str(value)


def text_settings(data: configs.Data, tokenizer: Tokenizer) -> dict[str, Any]:
  """Returns the settings that token ids depend on, beside the tokenizer."""
  template = ""
  if encoding.uses_template(tokenizer, data):
    assert tokenizer.template is not None
    text = tokenizer.template.text.encode()
    template = hashlib.sha256(text).hexdigest()
  return {
    "template": template,
    **{name: getattr(data, name) for name in LIMITS},
    **encoding.prompt_format(data, tokenizer),
  }


def load_tokenizer(path: str, data: configs.Data) -> Tokenizer:
  """Loads the tokenizer of a prepared directory, for a run."""
  directory = pathlib.Path(path).expanduser() / layout.TOKENIZER
  tokenizer = tokenizers.load_tokenizer(directory)
  return tokenizer if data.chat_template else tokenizer.without_template()


def limits(data: configs.Data) -> dict[str, int]:
  """Returns the limits of a run's prepared sources, by field; {} without."""
  for path in directories(data):
    manifest = manifest_lib.read_any(path)
    if isinstance(manifest, RecordsManifest):
      return {name: manifest.settings[name] for name in LIMITS}
  return {}
