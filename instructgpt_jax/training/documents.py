"""The documents of a run: texts that are packed in memory, or prepared rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import packing, reading
from instructgpt_jax.data import tokenizers as tokenizer_lib
from instructgpt_jax.data.prepared import layout, manifest
from instructgpt_jax.data.prepared.rows import PreparedRows
from instructgpt_jax.data.reading import text_files
from instructgpt_jax.data.tokenizers import Tokenizer, exported_tokens
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.training import fingerprint, inputs, mixed_sources

FIELD = "data.pretraining"
VALID_ROWS = 1024  # a validation loss is measured on at most these rows
LARGE_BYTES = 200_000_000  # a larger corpus should be prepared
# Bytes of memory for each byte of text that is tokenised and packed at a start:
# usual ones, and fewer than any text needs.
_LOW_MEMORY_PER_BYTE, _HIGH_MEMORY_PER_BYTE = 17, 36
_LEAST_MEMORY_PER_BYTE = 10


class Documents(Protocol):
  """The documents of a run."""

  @property
  def source(self) -> mixed_sources.MixedSource:
    """The flag, and the parts of the source if they have weights."""
    ...

  @property
  def counts(self) -> Mapping[str, int]:
    """Number of documents of each split."""
    ...

  def texts(self) -> Iterator[str]:
    """Yields the training documents, to train a tokenizer on."""
    ...

  def pack(self, tokenizer: Tokenizer, length: int) -> mixed_sources.Mixed:
    """Returns the training rows of `length` tokens, and their shares."""
    ...

  def valid_rows(
    self, tokenizer: Tokenizer, length: int
  ) -> dict[str, packing.Rows]:
    """Returns part → its validation rows, as `MixedSource.pack_validation`.

    Those after `VALID_ROWS` may be missing.
    """
    ...

  def split_rows(
    self, split: str, tokenizer: Tokenizer, length: int, max_rows: int
  ) -> packing.Rows:
    """Returns the first rows of a split, in memory."""
    ...

  def fingerprint(self, values: Any, *splits: str) -> fingerprint.Source:
    """Returns the fingerprint of the source.

    Args:
      values: what a run in memory uses of it.
      *splits: splits whose numbers of documents count.
    """
    ...

  def contents(self) -> list[Any]:
    """Returns the fields of all documents that are in memory, by split."""
    ...


class TextDocuments:
  """Documents that are read, tokenised and packed in memory.

  Args:
    data: the run's data section.
    tell: whether counts and warnings are shown.
  """

  def __init__(self, data: configs.Data, *, tell: bool = True):
    if data.pretraining:
      _check_size(data.pretraining, tell=tell)
    self._splits = inputs.documents(data, tell=tell)
    self._spec = data.pretraining
    self.source = mixed_sources.open_source(data, FIELD)
    self.counts = {k: len(v) for k, v in self._splits._asdict().items()}

  def texts(self) -> Iterator[str]:
    """Yields the training documents."""
    return (document.text for document in self._splits.train)

  def pack(self, tokenizer: Tokenizer, length: int) -> mixed_sources.Mixed:
    """Packs the training documents; parts with weights apart."""
    return self.source.pack(
      self._splits.train,
      lambda part: inputs.document_rows(part, tokenizer, length),
    )

  def valid_rows(
    self, tokenizer: Tokenizer, length: int
  ) -> dict[str, packing.Rows]:
    """Packs the validation documents; parts with weights apart."""
    return self.source.pack_validation(
      self._splits.valid,
      lambda part: inputs.document_rows(part, tokenizer, length),
    )

  def split_rows(
    self, split: str, tokenizer: Tokenizer, length: int, max_rows: int
  ) -> packing.Rows:
    """Packs the documents of a split; returns its first rows."""
    texts = getattr(self._splits, split)
    rows = inputs.document_rows(texts, tokenizer, length)
    return {name: value[:max_rows] for name, value in rows.items()}

  def fingerprint(self, values: Any, *splits: str) -> fingerprint.Source:
    """Computes the fingerprint of packed rows."""
    counts = {split: self.counts[split] for split in splits}
    return fingerprint.fingerprint_source(self._spec, values, **counts)

  def contents(self) -> list[Any]:
    """Returns the fields of all documents but for the file they come from."""
    return [
      [
        {k: v for k, v in vars(document).items() if k != "origin"}
        for document in part
      ]
      for part in self._splits
    ]


class PreparedDocuments:
  """Documents that `instructgpt_jax.data prepare` has tokenised and packed.

  Args:
    data: the run's data section.
    tell: whether counts are shown.

  Raises:
    UserError: `other_settings`, the user has set other shares of the splits
      than the documents were prepared with; and those of `manifest.read`.
  """

  def __init__(self, data: configs.Data, *, tell: bool = True):
    self._directory = data.pretraining
    self._manifest = manifest.read(self._directory)
    self.source = mixed_sources.MixedSource(FIELD, ())
    self.counts = self._manifest.documents
    for name in ("valid_fraction", "test_fraction"):
      prepared = self._manifest.settings[name]
      if data.is_explicit(name) and getattr(data, name) != prepared:
        raise UserError(
          f"was prepared with data.{name}={prepared:g}",
          file=self._directory,
          field=FIELD,
          fix=f"leave out --data.{name}, or prepare the documents with it",
          code="other_settings",
        )
    if tell:
      counts = ", ".join(f"{n:,} {k}" for k, n in self.counts.items() if n)
      log_line(f"{self._directory} [{FIELD}]: prepared documents ({counts})")

  def texts(self) -> Iterator[str]:
    """Yields nothing: prepared documents come with a tokenizer."""
    return iter(())

  def pack(self, tokenizer: Tokenizer, length: int) -> mixed_sources.Mixed:
    """Returns the training rows, which are read when they are used."""
    return mixed_sources.Mixed(self._rows("train", tokenizer, length), None)

  def valid_rows(
    self, tokenizer: Tokenizer, length: int
  ) -> dict[str, packing.Rows]:
    """Reads the first `VALID_ROWS` validation rows."""
    return {"": self.split_rows("valid", tokenizer, length, VALID_ROWS)}

  def split_rows(
    self, split: str, tokenizer: Tokenizer, length: int, max_rows: int
  ) -> packing.Rows:
    """Reads the first rows of a split."""
    rows = self._rows(split, tokenizer, length)
    return rows.take(np.arange(min(rows.count, max_rows)))

  def fingerprint(self, values: Any, *splits: str) -> fingerprint.Source:
    """Computes the fingerprint from the manifest, which has all checksums."""
    del values
    counts = {split: self.counts[split] for split in splits}
    return fingerprint.fingerprint_prepared(self._directory, **counts)

  def contents(self) -> list[Any]:
    """Returns nothing: the documents are not in memory."""
    return []

  def _rows(
    self, split: str, tokenizer: Tokenizer, length: int
  ) -> PreparedRows:
    """Opens the rows of a split.

    Raises:
      UserError: `other_tokenizer` or `other_length`.
    """
    path = os.path.join(os.path.expanduser(self._directory), layout.TOKENIZER)
    if not exported_tokens.same_ids(
      tokenizer_lib.load_tokenizer(path), tokenizer
    ):
      raise UserError(
        "was prepared with another tokenizer than this run's",
        file=self._directory,
        field=FIELD,
        fix=f"prepare the documents with the run's ({manifest.COMMAND}"
        " --tokenizer=PATH, which may be a workdir)",
        code="other_tokenizer",
      )
    lengths = self._manifest.shards
    if length not in lengths:
      has = ", ".join(map(str, lengths))
      raise UserError(
        f"has rows of {has} tokens, and this stage needs rows of {length}",
        file=self._directory,
        field=FIELD,
        fix="set the stage's row length (--pretrain.sequence, --sft.sequence,"
        " --ppo.ptx_sequence or --measure.sequence), or prepare the documents"
        f" with --length={has.replace(' ', '')},{length} to another directory",
        code="other_length",
      )
    return PreparedRows(
      self._directory, self._manifest, length, split, tokenizer.pad_id
    )


def open_documents(data: configs.Data, *, tell: bool = True) -> Documents:
  """Opens the documents of a run.

  Args:
    data: the run's data section.
    tell: whether counts and warnings are shown.

  Raises:
    UserError: the source is missing, damaged or of no use.
  """
  if layout.is_prepared(data.pretraining):
    return PreparedDocuments(data, tell=tell)
  return TextDocuments(data, tell=tell)


def held_out_split(documents: Documents, split: str) -> str:
  """Returns the split on whose documents an LM loss is measured.

  Args:
    documents: the run's documents.
    split: the evaluation's; train takes documents that were trained on, any
      other the validation documents, or else those of test.

  Raises:
    UserError: no document is held out.
  """
  if split == "train":
    return split
  counts = documents.counts
  for name in ("valid", "test"):
    if counts[name]:
      return name
  raise UserError(
    f"none of {counts['train']} documents is held out to measure a loss on",
    field=FIELD,
    fix="give more documents, or a --data.valid_fraction above 0, or mark"
    ' others with "split": "valid"; --evaluation.split=train takes documents'
    " that were trained on",
    code="no_evaluation_documents",
  )


def _check_size(spec: str, *, tell: bool) -> None:
  """Says that a large corpus should be prepared; refuses what cannot fit.

  Raises:
    UserError: `corpus_too_large`, the memory obviously does not suffice.
  """
  size = sum(map(text_files.text_bytes, reading.expand(spec)))
  if size <= LARGE_BYTES:
    return
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  command = f"{manifest.COMMAND} {spec} --to=DIR"
  low, high = (
    size * per_byte / 1e9
    for per_byte in (_LOW_MEMORY_PER_BYTE, _HIGH_MEMORY_PER_BYTE)
  )
  needed = f"{low:,.0f} to {high:,.0f} GB of memory"
  if size * _LEAST_MEMORY_PER_BYTE > memory:
    raise UserError(
      f"its {size / 1e9:,.1f} GB of text would be tokenised and packed at each"
      f" start, in {needed}, and there are {memory / 1e9:,.0f} GB",
      file=spec,
      field=FIELD,
      fix=f"prepare it once ({command}), and give --{FIELD}=DIR",
      code="corpus_too_large",
    )
  if tell:
    log_line(
      f"warning: {FIELD}: {size / 1e6:,.0f} MB of text are tokenised and packed"
      f" at each start, by every process, in {needed}; fix: prepare them once"
      f" ({command}), and give --{FIELD}=DIR"
    )
