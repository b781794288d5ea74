"""The four sources, read, curated and encoded for a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from instructgpt_jax import config as config_lib
from instructgpt_jax.data import curation, sources, transforms
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
  completion_text,
  prompt_text,
)
from instructgpt_jax.data.tokenizer import Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.runtime.progress import say

R = TypeVar("R", Demonstration, Prompt, Ranking)


class Splits(NamedTuple):
  """Curated records of one source."""

  train: list[Any]
  valid: list[Any]
  test: list[Any]


def _given(spec: str, field: str, what: str) -> str:
  if not spec:
    raise UserError(
      f"{what} are needed here",
      field=field,
      fix=f"give --{field}=PATH (a file, a folder or a quoted glob)",
    )
  return spec


def _curated(
  read: Callable[[str], tuple[list[R], sources.Report]],
  spec: str,
  field: str,
  what: str,
  data: config_lib.Data,
  tokenizer: Tokenizer | None,
) -> Splits:
  records, report = read(_given(spec, field, what))
  splits, dropped = curation.curate(records, data, tokenizer)
  curation.require(splits, dropped, field)
  _tell(field, report, dropped, splits)
  return Splits(**splits)


def _tell(
  field: str,
  report: sources.Report,
  dropped: dict[str, int],
  splits: dict[str, list[Any]],
) -> None:
  counts = ", ".join(f"{len(v)} {k}" for k, v in splits.items() if v)
  notes = [f"skipped {n} {why}" for why, n in report.skipped.items()]
  notes += [f"dropped {n} {why}" for why, n in dropped.items()]
  say(f"{field}: {counts}" + "".join(f"; {note}" for note in notes))


def demonstrations(
  data: config_lib.Data, tokenizer: Tokenizer | None
) -> Splits:
  """Curated demonstrations; without a tokenizer, long prompts are kept."""
  return _curated(
    sources.read_demonstrations, data.demonstrations, "data.demonstrations",
    "demonstrations", data, tokenizer,
  )  # fmt: skip


def rankings(data: config_lib.Data, tokenizer: Tokenizer | None) -> Splits:
  """Curated rankings."""
  return _curated(
    sources.read_rankings, data.comparisons, "data.comparisons",
    "ranked completions", data, tokenizer,
  )  # fmt: skip


def prompts(data: config_lib.Data, tokenizer: Tokenizer | None) -> Splits:
  """Curated prompts."""
  return _curated(
    sources.read_prompts, data.prompts, "data.prompts", "prompts", data,
    tokenizer,
  )  # fmt: skip


def documents(data: config_lib.Data) -> Splits:
  """Documents, split by a hash of their text."""
  spec = _given(data.pretraining, "data.pretraining", "documents")
  records, report = sources.read_documents(spec)
  splits = curation.split_documents(records, data)
  curation.require(splits, {}, "data.pretraining")
  _tell("data.pretraining", report, {}, splits)
  return Splits(**splits)


def training_texts(data: config_lib.Data) -> Iterator[str]:
  """Texts to train a tokenizer on: documents if there are any, else all."""
  if data.pretraining:
    yield from (d.text for d in documents(data).train)
    return
  if data.demonstrations:
    for d in demonstrations(data, None).train:
      yield prompt_text(d.turns, data) + completion_text(d.completion)
  if data.comparisons:
    for r in rankings(data, None).train:
      prompt = prompt_text(r.turns, data)
      yield from (prompt + completion_text(c) for c in r.completions)


def document_rows(
  texts: Sequence[Document], tokenizer: Tokenizer, length: int
) -> transforms.Rows:
  """Documents packed into rows of `length` tokens."""
  return transforms.document_rows(
    transforms.encode_documents([d.text for d in texts], tokenizer),
    length,
    eos_id=tokenizer.eos_id,
    pad_id=tokenizer.pad_id,
  )


def demonstration_rows(
  records: Sequence[Demonstration],
  tokenizer: Tokenizer,
  data: config_lib.Data,
  length: int,
  *,
  mask_prompt: bool,
  pack: bool,
) -> transforms.Rows:
  """Demonstrations as rows of `length` tokens."""
  layout = transforms.pack_examples if pack else transforms.pad_examples
  return layout(
    [
      transforms.example(prompt, completion, mask_prompt=mask_prompt)
      for prompt, completion in transforms.encode_demonstrations(
        records, tokenizer, data
      )
    ],
    length,
    pad_id=tokenizer.pad_id,
  )
