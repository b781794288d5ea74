"""Our own formats: demonstrations, rankings, prompts and texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats.format import Format, has
from instructgpt_jax.data.formats.json_values import (
  as_number,
  is_null,
  type_name,
)
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.formats.texts import (
  check_repeated,
  clean,
  ranks_of,
  reply,
)
from instructgpt_jax.data.formats.turns import (
  Turns,
  merge,
  read_messages,
  read_prompt,
)
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
  Record,
)


def _prompt(obj: Mapping[str, Any], reader: RecordReader) -> Turns:
  if not isinstance(obj.get("prompt"), list):
    reader.get(obj, "prompt")
  return read_prompt(obj["prompt"], "prompt", reader)


def _demonstrations(obj: Any, reader: RecordReader) -> Iterator[Record]:
  value = obj.get("completion")
  if isinstance(value, list):
    turns, completion = _conversational(obj, reader)
  else:
    turns = _prompt(obj, reader)
    # Public files write nothing but the end of text; a bare "" is a mistake.
    completion = reader.text(obj, "completion")
  yield Demonstration(
    turns=turns, completion=reply(completion, reader), origin=reader.origin
  )


def _conversational(
  obj: Mapping[str, Any], reader: RecordReader
) -> tuple[Turns, str]:
  """Returns the prompt and the last reply of a completion of messages."""
  messages = read_messages(obj["completion"], "completion", reader)
  last = messages[-1]
  if last.turn.role != "assistant":
    reader.fail(
      "does not end with a reply",
      f"completion[{len(messages) - 1}]",
      "end the completion with an assistant's turn",
      "completion_end",
    )
  if last.excluded:
    raise Skip(last.excluded)
  before = tuple(m.turn for m in messages[:-1])
  return merge(_prompt(obj, reader), before), last.turn.text


def _rankings(obj: Any, reader: RecordReader) -> Iterator[Record]:
  completions = _completions(obj, reader)
  ranks = _ranks(obj, len(completions), reader)
  grades = _grades(obj, len(completions), reader)
  turns = _prompt(obj, reader)
  if len(set(ranks)) == 1:
    raise Skip(skips.TIES)
  texts = tuple(clean(c) for c in completions)
  check_repeated(texts, ranks, reader)
  yield Ranking(
    turns=turns,
    completions=texts,
    ranks=ranks,
    grades=grades,
    origin=reader.origin,
  )


def _completions(obj: Mapping[str, Any], reader: RecordReader) -> list[str]:
  completions = reader.get(obj, "completions", list)
  if len(completions) < 2:
    reader.fail(
      f"{len(completions)} completions cannot be ranked",
      "completions",
      "give at least 2",
      "completion_count",
    )
  for i, completion in enumerate(completions):
    if not isinstance(completion, str):
      reader.fail(
        f"text is expected, not {type_name(completion)}",
        f"completions[{i}]",
        "write each completion as text",
        "wrong_type",
      )
    if not clean(completion):
      reader.fail(
        "is empty",
        f"completions[{i}]",
        "give it a text or delete it with its rank",
        "empty_text",
      )
  return completions


def _ranks(
  obj: Mapping[str, Any], count: int, reader: RecordReader
) -> tuple[int, ...]:
  """Reads ranks, or computes them from scores; both have to agree."""
  by_score = ranks_of(_numbers(obj, "scores", count, reader))
  if by_score and is_null(obj.get("ranks")):
    return by_score
  ranks = reader.get(obj, "ranks", list)
  for i, rank in enumerate(ranks):
    number = as_number(rank)
    if number is None or number < 1 or not number.is_integer():
      reader.fail(
        f"{rank!r} is no rank",
        f"ranks[{i}]",
        "give whole numbers, 1 for best",
        "bad_rank",
      )
  ranks = [int(as_number(rank)) for rank in ranks]  # type: ignore[arg-type]
  _same_count(len(ranks), count, "ranks", reader)
  if by_score and ranks_of([-rank for rank in ranks]) != by_score:
    reader.fail(
      "the scores order the completions otherwise than the ranks",
      "scores",
      "delete one of the two fields",
      "scores_contradict_ranks",
    )
  return tuple(ranks)


def _grades(
  obj: Mapping[str, Any], count: int, reader: RecordReader
) -> tuple[float, ...]:
  """Returns the grades, else the quality of our labeling, else the scores."""
  labeling = obj.get("labeling")
  if not isinstance(labeling, dict):
    labeling = {}
  return tuple(
    _numbers(obj, "grades", count, reader)
    or _numbers(labeling, "overall", count, reader, "labeling.")
    or _numbers(obj, "scores", count, reader)
  )


def _numbers(
  obj: Mapping[str, Any],
  name: str,
  count: int,
  reader: RecordReader,
  where: str = "",
) -> list[float]:
  """Returns a field of one number for each completion; [] without it."""
  if is_null(obj.get(name)):
    return []
  values = reader.get(obj, name, list, where=where)
  numbers = [
    reader.number({f"{name}[{i}]": value}, f"{name}[{i}]", where)
    for i, value in enumerate(values)
  ]
  _same_count(len(numbers), count, name, reader)
  return numbers


def _same_count(
  count: int, expected: int, name: str, reader: RecordReader
) -> None:
  if count != expected:
    reader.fail(
      f"{count} {name} for {expected} completions",
      name,
      f"give each completion one of the {name}",
      "rank_count",
    )


def _prompts(obj: Any, reader: RecordReader) -> Iterator[Record]:
  yield Prompt(turns=_prompt(obj, reader), origin=reader.origin)


def _texts(obj: Any, reader: RecordReader) -> Iterator[Record]:
  yield Document(text=reader.text(obj, "text"), origin=reader.origin)


def _prompt_strings(obj: Any, reader: RecordReader) -> Iterator[Record]:
  if not isinstance(obj, str):
    reader.fail(f"text is expected, not {type_name(obj)}", code="wrong_type")
  if not obj.strip():
    reader.fail("the prompt is empty", "", "delete the line", "empty_text")
  yield Prompt(turns=read_prompt(obj, "prompt", reader), origin=reader.origin)


def _is_ranking(obj: Any) -> bool:
  return isinstance(obj, dict) and (
    (has("prompt", "completions")(obj) and _are_texts(obj["completions"]))
    or has("prompt", "ranks", without=("responses", "answers"))(obj)
    or has("completions", "ranks")(obj)
  )


def _are_texts(value: Any) -> bool:
  return not (isinstance(value, list) and value and isinstance(value[0], dict))


_PROMPT = "the prompt: a text, a transcript or messages"
STRINGS = Format(
  "prompts, one JSON text a line",
  lambda obj: isinstance(obj, str),
  _prompt_strings,
  result="prompts",
)
RANKINGS = Format(
  "own rankings",
  _is_ranking,
  _rankings,
  {
    "prompt": _PROMPT,
    "completions": "the ranked replies",
    "ranks": "their ranks: whole numbers, 1 for best; equal ranks tie",
    "scores": "gives the ranks where there are none (highest best); one order"
    " with the ranks otherwise",
    "grades": "how good each reply is, highest best, for --reward.margin=grade",
    "labeling": "from the labeling application: `overall`, the quality from 1"
    " to 7, is the grade where there are no `grades`, and `scores` where there"
    " is neither",
  },
  ("prompt", "completions", "ranks"),
  strict=True,
  result="rankings",
)
DEMONSTRATIONS = Format(
  "own demonstrations",
  has("prompt", "completion"),
  _demonstrations,
  {"prompt": _PROMPT, "completion": "the reply: a text or messages"},
  ("prompt", "completion"),
  ("labeling",),
  strict=True,
  result="demonstrations (T0/P3, TRL, KTO)",
)
PROMPTS = Format(
  "own prompts",
  has("prompt"),
  _prompts,
  {"prompt": _PROMPT},
  ("prompt",),
  ("family", "labeling"),
  strict=True,
  result="prompts",
)
TEXT = Format(
  "own text",
  has("text"),
  _texts,
  {"text": "the document"},
  ("text",),
  common=("split", "weight"),
  strict=True,
  result="documents",
)
