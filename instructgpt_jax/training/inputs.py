"""The four sources, read, curated and encoded for a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.data import curation, encoding, packing, reading
from instructgpt_jax.data.curation import drops, splits, summary
from instructgpt_jax.data.reading import paths
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


class Splits(NamedTuple):
  """Curated records of one source."""

  train: list[Any]
  valid: list[Any]
  test: list[Any]


class _Kind(NamedTuple):
  """A kind of source: how it is read, and what it holds."""

  read: Callable[[str], tuple[list[Any], reading.Report]]
  what: str


_KINDS = {
  "demonstrations": _Kind(reading.read_demonstrations, "demonstrations"),
  "comparisons": _Kind(reading.read_rankings, "ranked completions"),
  "prompts": _Kind(reading.read_prompts, "prompts"),
}
_DOCUMENTS = _Kind(reading.read_documents, "documents")


class _Source(NamedTuple):
  """The records of one source, and what reading them reports."""

  field: str  # its flag
  spec: str  # the flag's value
  records: list[Any]
  report: reading.Report

  @property
  def total(self) -> int:
    """Number of records before anything was dropped or skipped."""
    return len(self.records) + sum(self.report.skipped.values())

  def causes(self, dropped: drops.Drops) -> list[drops.Cause]:
    """All causes for which records are not used, the largest first."""
    report = self.report
    return drops.causes(dropped, report.skipped, report.first_skips)


def _read(field: str, data: configs.Data, kind: _Kind) -> _Source:
  spec = getattr(data, field.removeprefix("data."))
  if not spec:
    raise UserError(
      f"{kind.what} are needed here",
      field=field,
      fix=f"give --{field}=PATH (a file, a directory or a quoted glob)",
      code="missing_source",
    )
  return _Source(field, spec, *kind.read(spec))


def _curated(
  name: str,
  data: configs.Data,
  tokenizer: Tokenizer | None,
  *,
  tell: bool = True,
) -> Splits:
  """Curates one source; splits are decided over all sources of the run.

  Args:
    name: key of `_KINDS`.
    data: the run's data section.
    tokenizer: counts tokens; without one, no limit in tokens is applied.
    tell: whether counts and warnings are shown.
  """
  kind = _KINDS[name]
  source = _read(f"data.{name}", data, kind)
  others = [
    other.read(getattr(data, key))[0]
    for key, other in _KINDS.items()
    if key != name and getattr(data, key)
  ]
  parts, dropped = curation.curate(source.records, data, tokenizer, others)
  return _accept(source, parts, dropped, data, tell=tell)


def _accept(
  source: _Source,
  parts: dict[str, list[Any]],
  dropped: drops.Drops,
  data: configs.Data,
  *,
  tell: bool,
) -> Splits:
  """Refuses a source that loses too many records, and logs its counts."""
  drops.judge(source.field, source.causes(dropped), source.total, data)
  curation.require(parts, dropped, source.field, source.report.skipped)
  if tell:
    _log_source(source, dropped, parts, data)
  return Splits(**parts)


def _log_source(
  source: _Source,
  dropped: drops.Drops,
  parts: dict[str, list[Any]],
  data: configs.Data,
) -> None:
  """Logs one line of counts for a source, then notes and warnings."""
  field, report = source.field, source.report
  name = summary.source_name(source.spec, field, report)
  log_line(
    summary.source_line(
      name, source.total, parts, dropped, source.causes(dropped), data
    )
  )
  notes = reading.remarks(report.unused, report.notes)
  notes += paths.show_ignored(report.ignored)
  if dropped.templates:
    notes.append(
      f"{dropped.templates:,} prompts with a shared beginning are compared"
      " from where they differ"
    )
  for note in notes:
    log_line(f"note: {field}: {note}")
  for line in drops.warnings(
    field, dropped, source.causes(dropped), source.total
  ):
    log_line(line)


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


def _evaluated(parts: Splits, split: str, data: configs.Data) -> list[Prompt]:
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
  source = _read("data.pretraining", data, _DOCUMENTS)
  parts = splits.split_documents(source.records, data)
  return _accept(source, parts, drops.Drops(), data, tell=tell)


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
