"""Public K-way data: several replies to a prompt, with scores or ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats.format import Format, choose, first_of, has
from instructgpt_jax.data.formats.json_values import (
  as_number,
  is_blank,
  is_null,
)
from instructgpt_jax.data.formats.pairs import GRADED
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.formats.texts import (
  add_input,
  agreeing_prompt,
  check_repeated,
  clean,
  is_placeholder,
  optional_input,
  ranks_of,
  read_named_prompt,
)
from instructgpt_jax.data.formats.turns import Turns
from instructgpt_jax.data.formats.verdicts import summary_prompt
from instructgpt_jax.data.records import Prompt, Ranking, Record

SINGLE = "replies that no other reply to the prompt is compared with"
_NO_SCORE = "replies without a score"
_PROMPTS = ("prompt", "instruction", "question", "query", "user_input")
_LISTS = ("completions", "responses", "answers", "responses_and_scores")
_TEXTS = ("response", "completion", "answer", "text", "content", "output")
_SCORES = ("overall_score", "score", "rating", "fine-grained_score", "reward")
# Means of ratings, which UltraFeedback's overall_score may contradict.
_MEANS = ("fine-grained_score", "annotations")
_ORDERS = ("scores", "ratings", "ranks")
_OTHER_SCORES = ("correctness", "coherence", "complexity", "verbosity")
_ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def ranking(
  turns: Turns,
  texts: Sequence[str],
  scores: Sequence[float],
  reader: RecordReader,
  labeler_id: str = "",
  *,
  graded: bool = False,
) -> Iterator[Record]:
  """Yields the ranking of replies by their scores, the highest first.

  Replies without a text are left out and noted.

  Args:
    turns: the prompt.
    texts: the replies.
    scores: the score of each.
    reader: of the record.
    labeler_id: who scored them.
    graded: whether the scores are grades, and not just an order.

  Raises:
    Skip: where fewer than two replies or only ties are left.
  """
  rows = [(clean(t), s) for t, s in zip(texts, scores, strict=True)]
  if any(not text for text, _ in rows):
    reader.notes.add("rankings without their empty replies")
  rows = [row for row in rows if row[0]]
  if len(rows) < 2:
    raise Skip(SINGLE)
  ranks = ranks_of([score for _, score in rows])
  if len(set(ranks)) == 1:
    raise Skip(skips.TIES)
  check_repeated([text for text, _ in rows], ranks, reader)
  yield Ranking(
    turns=turns,
    completions=tuple(text for text, _ in rows),
    ranks=ranks,
    grades=tuple(float(score) for _, score in rows) if graded else (),
    labeler_id=labeler_id,
    origin=reader.origin,
  )


def _prompt(obj: Mapping[str, Any], reader: RecordReader) -> Turns:
  turns = agreeing_prompt(obj, _PROMPTS, reader)
  if not turns:
    turns = read_named_prompt(obj, first_of(obj, _PROMPTS) or "prompt", reader)
  return add_input(turns, optional_input(obj, "input", reader))


def _number(value: Any) -> float | None:
  """Returns a finite score, also one that is text; None for "N/A"."""
  number = as_number(value)
  return None if number is None or math.isinf(number) else number


def _is_unreadable(value: Any) -> bool:
  """Returns whether a value is neither a score nor a placeholder."""
  if isinstance(value, str) and is_placeholder(value):
    return False
  return not is_blank(value) and _number(value) is None


def _orders(replies: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
  """Returns what orders the replies, by field; None where a reply lacks it.

  Ranks are negated. UltraFeedback's overall_score precedes the mean of its four
  ratings.
  """
  orders = {
    name: [_number(reply.get(name)) for reply in replies] for name in _SCORES
  }
  ranks = [_number(reply.get("rank")) for reply in replies]
  orders["rank"] = [None if rank is None else -rank for rank in ranks]
  orders["annotations"] = [_mean_rating(reply) for reply in replies]
  return orders


def _mean_rating(reply: Mapping[str, Any]) -> float | None:
  """Returns the mean of UltraFeedback's four ratings of a reply, if any."""
  aspects = reply.get("annotations")
  if not isinstance(aspects, dict):
    return None
  ratings = [
    _number(aspects[a].get("Rating"))
    for a in _ASPECTS
    if isinstance(aspects.get(a), dict)
  ]
  known = [r for r in ratings if r is not None]
  return sum(known) / len(known) if known else None


def _first_order(orders: Mapping[str, list[Any]]) -> list[float | None]:
  """Returns the first order of two replies or more, else of one.

  Replies are compared by one field alone: two fields may have two scales.
  """
  for least in (2, 1):
    for order in orders.values():
      if sum(score is not None for score in order) >= least:
        return order
  return next(iter(orders.values()))


def _check_agree(orders: Sequence[Sequence[float | None]]) -> None:
  """Skips replies that two lists of scores order in opposite ways.

  Each list holds the scores of all replies, or None where a reply has none.
  """
  for first, second in itertools.combinations(orders, 2):
    both = [
      (a, b)
      for a, b in zip(first, second, strict=True)
      if a is not None and b is not None
    ]
    by_first = ranks_of([a for a, _ in both])
    by_second = ranks_of([b for _, b in both])
    pairs = sorted(zip(by_first, by_second, strict=True))
    if any(a > b for (_, a), (_, b) in itertools.pairwise(pairs)):
      raise Skip(skips.CONTRADICTION)


def _scored(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields the ranking of a list of replies, or a prompt without scores."""
  name = choose(obj, _LISTS, reader) or _LISTS[0]
  replies = reader.get(obj, name, list)
  turns = _prompt(obj, reader)
  if not replies:
    raise Skip(skips.NO_REPLIES)
  texts = []
  unreadable = False
  for i, reply in enumerate(replies):
    if not isinstance(reply, dict):
      reader.fail("an object is expected", f"{name}[{i}]", code="wrong_type")
    field = first_of(reply, _TEXTS) or "response"
    texts.append(reader.get(reply, field, where=f"{name}[{i}]."))
    known = {field, "model", "source", "rank", "annotations", *_SCORES}
    reader.note_others(reply, known, f"{name}[]")
    for score in (*_SCORES, "rank"):
      if _is_unreadable(reply.get(score)):
        unreadable = True
        reader.unused.add(f"{name}[].{score} (no number)")
  orders = _orders(replies)
  scores = _first_order(orders)
  if not any(score is not None for score in scores):
    if unreadable:
      raise Skip(skips.UNREADABLE)
    # Replies that nobody ranked.
    yield Prompt(turns=turns, origin=reader.origin)
    return
  if None in scores:
    reader.notes.add("rankings without their replies that lack a score")
  facts = [orders[name] for name in orders if name not in _MEANS]
  _check_agree([scores, *facts])
  if not any("rank" in reply for reply in replies):
    reader.notes.add(GRADED)
  rows = [(t, s) for t, s in zip(texts, scores, strict=True) if s is not None]
  yield from ranking(
    turns,
    [t for t, _ in rows],
    [s for _, s in rows],
    reader,
    graded=scores is not orders["rank"],
  )


def _parallel(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields the ranking of a list of texts beside a list of scores."""
  name = choose(obj, _LISTS, reader) or _LISTS[0]
  texts = reader.get(obj, name, list)
  names = [by for by in _ORDERS if not is_blank(obj.get(by))]
  orders = [
    _parallel_scores(obj, by, len(texts), name, reader)
    for by in names or [first_of(obj, _ORDERS) or _ORDERS[0]]
  ]
  if not texts:
    raise Skip(skips.NO_REPLIES)
  for i in range(len(texts)):
    reader.get({f"{name}[{i}]": texts[i]}, f"{name}[{i}]")
  _check_agree(orders)
  graded = names != ["ranks"]
  if graded:
    reader.notes.add(GRADED)
  yield from ranking(
    _prompt(obj, reader), texts, orders[0], reader, graded=graded
  )


def _parallel_scores(
  obj: Mapping[str, Any],
  by: str,
  count: int,
  replies: str,
  reader: RecordReader,
) -> list[float]:
  """Returns the scores of one field, or minus the ranks."""
  values = reader.get(obj, by, list)
  if len(values) != count:
    reader.fail(
      f"{len(values)} {by} for {count} {replies}",
      by,
      f"give each of {replies} one of the {by}",
      "rank_count",
    )
  sign = -1 if by == "ranks" else 1
  return [
    sign * reader.number({f"{by}[{i}]": value}, f"{by}[{i}]")
    for i, value in enumerate(values)
  ]


# Rankings that are spread over several records.


def _helpsteer(
  obj: Any, reader: RecordReader
) -> Iterator[tuple[Turns, Any, str]]:
  """Yields one scored reply; `_group` makes the rankings."""
  turns = read_named_prompt(obj, "prompt", reader)
  score = reader.number(obj, "helpfulness")
  if any(not is_blank(obj.get(name)) for name in _OTHER_SCORES):
    reader.notes.add("scores other than helpfulness, which gives the ranks")
  yield turns, (reader.get(obj, "response"), score), ""


def _summary_axes(
  obj: Any, reader: RecordReader
) -> Iterator[tuple[Turns, Any, str]]:
  """Yields one summary with its overall score."""
  summary = reader.get(obj, "summary", dict)
  axes = reader.get(summary, "axes", dict, where="summary.")
  score = _number(axes.get("overall"))
  if score is None:
    raise Skip(_NO_SCORE)
  text = reader.get(summary, "text", where="summary.")
  if len(axes) > 1:
    reader.notes.add("scores other than overall, which gives the ranks")
  yield (
    summary_prompt(obj, reader),
    (text, score),
    reader.identity(obj, "worker"),
  )


def _group(
  rows: list[Any], turns: Turns, reader: RecordReader
) -> Iterator[Record]:
  """Yields the ranking of all replies to one prompt."""
  yield from ranking(
    turns, [t for t, _ in rows], [s for _, s in rows], reader, graded=True
  )


def _has_list(obj: Any, kind: type) -> bool:
  """Returns whether a record has a prompt and a list of one type.

  An empty list counts as well.
  """
  if not isinstance(obj, dict) or not first_of(obj, _PROMPTS):
    return False
  name = first_of(obj, _LISTS)
  value = obj.get(name)
  if not name or is_null(value) or value == []:
    return bool(name)
  return isinstance(value, list) and isinstance(value[0], kind)


def _is_scored(obj: Any) -> bool:
  return _has_list(obj, dict) and not (
    _has_list(obj, str) and first_of(obj, _ORDERS)
  )


def _is_parallel(obj: Any) -> bool:
  return _has_list(obj, str) and bool(first_of(obj, _ORDERS))


_LIST = (
  "the replies: their text; their score (highest best) or rank (lowest best),"
  " UltraFeedback's overall_score before the mean of its ratings; without"
  " either a prompt; scores that are no numbers are counted"
)
SCORED = Format(
  "scored or ranked replies",
  _is_scored,
  _scored,
  {
    **dict.fromkeys(_PROMPTS, "the prompt"),
    "input": "input below the prompt",
    **dict.fromkeys(_LISTS, _LIST),
  },
  ("prompt", "completions"),
  ("models", "turns", "num_responses", "good_natured", "correct_answers",
   "incorrect_answers"),
  result="rankings; prompts where no reply has a score",
)  # fmt: skip
PARALLEL = Format(
  "replies beside scores",
  _is_parallel,
  _parallel,
  {
    **dict.fromkeys(_PROMPTS, "the prompt"),
    "input": "input below the prompt",
    **dict.fromkeys(_LISTS, "the replies, as texts"),
    "scores": "their scores, highest best, which are the grades",
    "ratings": "as scores",
    "ranks": "their ranks, lowest best",
  },
  ("prompt", "responses", "scores"),
  result="rankings",
)
HELPSTEER = Format(
  "HelpSteer",
  has("prompt", "response", "helpfulness"),
  _helpsteer,
  {
    "prompt": "the prompt; all records of one prompt are one ranking",
    "response": "a reply",
    "helpfulness": "the score: highest best, equal ones tie",
    **dict.fromkeys(
      _OTHER_SCORES,
      "counted: not used",
    ),
  },
  ("prompt", "response", "helpfulness"),
  result="rankings",
  group=_group,
)
SUMMARY_AXES = Format(
  "OpenAI summary scores",
  has("info", "summary"),
  _summary_axes,
  {
    "info": "the prompt, as in OpenAI summary comparisons; all records of one"
    " prompt and worker are one ranking",
    "summary": "the reply: `text`, and in `axes` its score `overall`",
    "worker": "labeler id",
  },
  ("info", "summary"),
  ("batch",),
  result="rankings",
  group=_group,
)
