"""The four sources, read, curated and encoded for a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.data import curated_source, encoding, packing, reading
from instructgpt_jax.data.curation import drops, splits
from instructgpt_jax.data.prepared import manifest
from instructgpt_jax.data.prepared import records as prepared_records
from instructgpt_jax.data.reading import text_files
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  completion_text,
  prompt_text,
)
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.training import fingerprint

LARGE_BYTES = 200_000_000  # a larger source should be prepared


class Splits(NamedTuple):
  """Curated records of one source."""

  train: Sequence[Any]
  valid: Sequence[Any]
  test: Sequence[Any]


def _curated(
  name: str,
  data: configs.Data,
  tokenizer: Tokenizer | None,
  *,
  tell: bool = True,
) -> Splits:
  """Curates one source; splits are decided over all sources of the run.

  Args:
    name: key of `curated_source.KINDS`.
    data: the run's data section.
    tokenizer: counts tokens; without one, no limit in tokens is applied.
    tell: whether counts and warnings are shown.
  """
  if prepared_records.is_used(data):
    curated = prepared_records.open_source(name, data, tokenizer)
  else:
    kinds = curated_source.KINDS
    source = curated_source.read(f"data.{name}", data, kinds[name])
    if tell:
      _advise_preparation(source)
    others = [
      kind.read(getattr(data, key))[0]
      for key, kind in kinds.items()
      if key != name and getattr(data, key)
    ]
    curated = curated_source.curate(source, others, data, tokenizer)
  if tell:
    for line in curated.lines:
      log_line(line)
  return Splits(**curated.parts)


def _advise_preparation(source: curated_source.Source) -> None:
  """Says that a large source should be prepared."""
  size = sum(map(text_files.text_bytes, reading.expand(source.spec)))
  if size <= LARGE_BYTES:
    return
  log_line(
    f"warning: {source.field}: {size / 1e6:,.0f} MB of text are curated and"
    " tokenised at each start, by every process; fix: prepare them once"
    f" ({manifest.COMMAND} --{source.field}={source.spec} --to=DIR, together"
    " with the run's other sources)"
  )


def demonstrations(data: configs.Data, tokenizer: Tokenizer | None) -> Splits:
  """Curated demonstrations; without a tokenizer, long prompts are kept."""
  return _curated("demonstrations", data, tokenizer)


def without_limits(name: str, data: configs.Data) -> Splits:
  """Curates a source without limits in tokens, and shows nothing.

  Args:
    name: "demonstrations", "comparisons" or "prompts".
    data: the run's data section.
  """
  return _curated(name, data, None, tell=False)


def rankings(data: configs.Data, tokenizer: Tokenizer | None) -> Splits:
  """Curated rankings."""
  return _curated("comparisons", data, tokenizer)


def prompts(data: configs.Data, tokenizer: Tokenizer | None) -> Splits:
  """Curated prompts."""
  return _curated("prompts", data, tokenizer)


def fingerprint_records(
  data: configs.Data, name: str, values: Callable[[], Any], **records: int
) -> fingerprint.Source:
  """Computes the fingerprint of a source.

  Args:
    data: the run's data section.
    name: "demonstrations", "comparisons" or "prompts".
    values: returns what a run uses of the source; not called for prepared
      records, whose manifest has their checksums.
    **records: split → number of records.
  """
  spec = getattr(data, name)
  if prepared_records.is_used(data):
    return fingerprint.fingerprint_prepared(spec, **records)
  return fingerprint.fingerprint_source(spec, values(), **records)


class EvaluationPrompts(NamedTuple):
  """Prompts of an evaluation."""

  measured: list[Prompt]  # what models are measured on
  choosing: list[Prompt]  # what a prefix is chosen on


def evaluation_prompts(
  data: configs.Data,
  tokenizer: Tokenizer | None,
  section: configs.Evaluation,
  seed: int,
) -> EvaluationPrompts:
  """Draws the prompts of an evaluation by seed.

  A prompt's rank in the draw depends only on the seed and its text, so models
  of one seed answer the same prompts.

  Args:
    data: the run's data section.
    tokenizer: counts tokens.
    section: says which split, and how many prompts.
    seed: of the draw.

  Raises:
    UserError: the split has no prompts.
  """
  parts = prompts(data, tokenizer)
  pool = _evaluated(parts, section.split, data)
  choosing = parts.train
  if parts.valid and section.split != "valid":
    choosing = parts.valid
  return EvaluationPrompts(
    measured=draw(pool, section.prompts, f"evaluation {seed}"),
    choosing=draw(choosing, section.prefix_prompts, f"prefix {seed}"),
  )


def _other_split(parts: Splits, split: str, data: configs.Data) -> str:
  """Returns the fix for an evaluation whose split has no prompts."""
  fixes = []
  if split == "test" and not data.test_fraction:
    fixes.append("give --data.test_fraction=0.1")
  if split == "test" and parts.valid:
    fixes.append("--evaluation.split=valid evaluates on validation prompts")
  fixes.append(f'mark prompts with "split": "{split}", or give more prompts')
  return "; or ".join(fixes)


def require_evaluation(data: configs.Data, section: configs.Evaluation) -> None:
  """Refuses prompts that a later evaluation could not draw from.

  Args:
    data: the run's data section.
    section: says which split is evaluated on.
  """
  parts = _curated("prompts", data, None, tell=False)
  _evaluated(parts, section.split, data)


def _evaluated(
  parts: Splits, split: str, data: configs.Data
) -> Sequence[Prompt]:
  """Returns the prompts of a split; refuses a split without prompts."""
  pool = getattr(parts, split)
  if not pool:
    counts = ", ".join(f"{len(v)} {k}" for k, v in parts._asdict().items())
    raise UserError(
      f"there is no {split} prompt to evaluate on ({counts})",
      field="data.prompts",
      fix=_other_split(parts, split, data),
      code="no_evaluation_prompts",
    )
  return pool


def draw(pool: Sequence[Any], count: int, key: str) -> list[Any]:
  """Draws records by a hash of the text of their turns.

  Args:
    pool: records with `turns`.
    count: number of records to draw.
    key: begins what is hashed; another key draws others.
  """

  def rank(prompt: Any) -> float:
    text = "\n".join(f"{t.role}:{t.text}" for t in prompt.turns)
    return splits.hash_fraction(f"{key}\n{text}")

  return sorted(pool, key=rank)[:count]


def documents(data: configs.Data, *, tell: bool = True) -> Splits:
  """Reads documents, split by a hash of their text.

  Args:
    data: the run's data section.
    tell: whether counts and warnings are shown.
  """
  source = curated_source.read(
    "data.pretraining", data, curated_source.DOCUMENTS
  )
  parts = splits.split_documents(source.records, data)
  curated = curated_source.accept(source, parts, drops.Drops(), data)
  if tell:
    for line in curated.lines:
      log_line(line)
  return Splits(**curated.parts)


def training_texts(data: configs.Data, *, tell: bool = True) -> Iterator[str]:
  """Texts to train a tokenizer on: documents if there are any, else all.

  Args:
    data: the run's data section.
    tell: whether counts and warnings of documents are shown; False where the
      stage reads them again.
  """
  if data.pretraining:
    yield from (d.text for d in documents(data, tell=tell).train)
    return
  if data.demonstrations:
    for d in _curated("demonstrations", data, None, tell=False).train:
      yield prompt_text(d.turns, data) + completion_text(d.completion)
  if data.comparisons:
    for r in _curated("comparisons", data, None, tell=False).train:
      prompt = prompt_text(r.turns, data)
      yield from (prompt + completion_text(c) for c in r.completions)


def document_rows(
  texts: Sequence[Document], tokenizer: Tokenizer, length: int
) -> packing.Rows:
  """Documents packed into rows of `length` tokens."""
  return packing.pack_documents(
    encoding.encode_documents([d.text for d in texts], tokenizer),
    length,
    eos_id=tokenizer.document_end_id,
    pad_id=tokenizer.pad_id,
  )


def demonstration_rows(
  records: Sequence[Demonstration],
  tokenizer: Tokenizer,
  data: configs.Data,
  length: int,
  *,
  section: configs.Sft,
) -> packing.Rows:
  """Demonstrations as rows of `length` tokens."""
  layout = packing.pack_examples if section.pack else packing.pad_examples
  return layout(
    encoding.encode_examples(
      records,
      tokenizer,
      data,
      mask_prompt=section.mask_prompt,
      all_turns=section.loss_turns == "all",
    ),
    length,
    pad_id=tokenizer.pad_id,
  )
