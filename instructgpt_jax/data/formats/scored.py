"""Public K-way data: several replies to a prompt, with scores or ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instructgpt_jax.data.formats import at as reading
from instructgpt_jax.data.formats.at import At, Skip
from instructgpt_jax.data.formats.format import Format, choose, first_of, has
from instructgpt_jax.data.formats.pairs import GRADED
from instructgpt_jax.data.formats.texts import (
  add_input,
  check_repeated,
  clean,
  optional_input,
  ranks_of,
)
from instructgpt_jax.data.formats.turns import Turns, read_prompt
from instructgpt_jax.data.formats.verdicts import summary_prompt
from instructgpt_jax.data.records import Prompt, Ranking, Record

SINGLE = "replies that no other reply to the prompt is compared with"
_NO_SCORE = "replies without a score"
_PROMPTS = ("prompt", "instruction", "question", "query", "user_input")
_LISTS = ("completions", "responses", "answers", "responses_and_scores")
_TEXTS = ("response", "completion", "answer", "text", "content", "output")
_SCORES = ("overall_score", "score", "rating", "fine-grained_score", "reward")
_OTHER_SCORES = ("correctness", "coherence", "complexity", "verbosity")
_ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def ranking(
  turns: Turns, texts: Sequence[str], scores: Sequence[float], at: At,
  labeler_id: str = "",
) -> Iterator[Record]:  # fmt: skip
  """Yields the ranking of replies by their scores, the highest first.

  Replies without a text are left out and noted.

  Raises:
    Skip: where fewer than two replies or only ties are left.
  """
  rows = [(clean(t), s) for t, s in zip(texts, scores, strict=True)]
  if any(not text for text, _ in rows):
    at.notes.add("rankings without their empty replies")
  rows = [row for row in rows if row[0]]
  if len(rows) < 2:
    raise Skip(SINGLE)
  ranks = ranks_of([score for _, score in rows])
  if len(set(ranks)) == 1:
    raise Skip(reading.TIES)
  check_repeated([text for text, _ in rows], ranks, at)
  yield Ranking(
    turns=turns,
    completions=tuple(text for text, _ in rows),
    ranks=ranks,
    labeler_id=labeler_id,
    origin=at.origin,
  )


def _prompt(obj: Mapping[str, Any], at: At) -> Turns:
  name = choose(obj, _PROMPTS, at)
  if not isinstance(obj.get(name), list):
    at.get(obj, name or "prompt")
  turns = read_prompt(obj[name], name, at)
  return add_input(turns, optional_input(obj, "input", at))


def _number(value: Any) -> float | None:
  """Returns a score, also one that is written as text; None for "N/A"."""
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    return None
  try:
    number = float(value)
  except ValueError:
    return None
  return None if reading.is_null(number) else number


def _score(reply: Mapping[str, Any]) -> float | None:
  """Returns what a reply is ordered by: its score or minus its rank.

  UltraFeedback's overall_score precedes the mean of its four ratings.
  """
  for name in _SCORES:
    score = _number(reply.get(name))
    if score is not None:
      return score
  rank = _number(reply.get("rank"))
  if rank is not None:
    return -rank
  aspects = reply.get("annotations")
  if isinstance(aspects, dict):
    ratings = [
      _number(aspects[a].get("Rating"))
      for a in _ASPECTS
      if isinstance(aspects.get(a), dict)
    ]
    known = [r for r in ratings if r is not None]
    if known:
      return sum(known) / len(known)
  return None


def _check_ranks(replies: Sequence[Any], scores: Sequence[float | None]):
  """Skips replies whose scores order them otherwise than their ranks."""
  ranks = [_number(reply.get("rank")) for reply in replies]
  both = [
    (score, -rank)
    for score, rank in zip(scores, ranks, strict=True)
    if score is not None and rank is not None
  ]
  by_score = ranks_of([score for score, _ in both])
  by_rank = ranks_of([rank for _, rank in both])
  pairs = sorted(zip(by_score, by_rank, strict=True))
  if any(a > b for (_, a), (_, b) in itertools.pairwise(pairs)):
    raise Skip(reading.CONTRADICTION)


def _scored(obj: Any, at: At) -> Iterator[Record]:
  """Yields the ranking of a list of replies, or a prompt without scores."""
  name = choose(obj, _LISTS, at)
  replies = at.get(obj, name, list)
  turns = _prompt(obj, at)
  texts, scores = [], []
  for i, reply in enumerate(replies):
    if not isinstance(reply, dict):
      at.fail("an object is expected", f"{name}[{i}]", code="wrong_type")
    field = first_of(reply, _TEXTS) or "response"
    texts.append(at.get(reply, field, where=f"{name}[{i}]."))
    scores.append(_score(reply))
    known = {field, "model", "source", "rank", "annotations", *_SCORES}
    reading.note_others(at, reply, known, f"{name}[]")
  if not any(score is not None for score in scores):
    # Replies that nobody ranked.
    yield Prompt(turns=turns, origin=at.origin)
    return
  if None in scores:
    at.notes.add("rankings without their replies that lack a score")
  _check_ranks(replies, scores)
  if not any("rank" in reply for reply in replies):
    at.notes.add(GRADED)
  rows = [(t, s) for t, s in zip(texts, scores, strict=True) if s is not None]
  yield from ranking(turns, [t for t, _ in rows], [s for _, s in rows], at)


def _parallel(obj: Any, at: At) -> Iterator[Record]:
  """Yields the ranking of a list of texts beside a list of scores."""
  name = choose(obj, _LISTS, at)
  texts = at.get(obj, name, list)
  by = choose(obj, ("scores", "ratings", "ranks"), at)
  values = at.get(obj, by, list)
  if len(texts) != len(values):
    at.fail(
      f"{len(values)} {by} for {len(texts)} {name}",
      by,
      f"give each of {name} one of the {by}",
      "rank_count",
    )
  scores = [
    at.number({f"[{i}]": v}, f"[{i}]", by) * (-1 if by == "ranks" else 1)
    for i, v in enumerate(values)
  ]
  for i in range(len(texts)):
    at.get({f"[{i}]": texts[i]}, f"[{i}]", where=name)
  if by != "ranks":
    at.notes.add(GRADED)
  yield from ranking(_prompt(obj, at), texts, scores, at)


# Rankings that are spread over several records.


def _helpsteer(obj: Any, at: At) -> Iterator[tuple[Turns, Any, str]]:
  """Yields one scored reply; `_group` makes the rankings."""
  turns = read_prompt(at.get(obj, "prompt"), "prompt", at)
  score = at.number(obj, "helpfulness")
  if any(not reading.is_blank(obj.get(name)) for name in _OTHER_SCORES):
    at.notes.add("scores other than helpfulness, which gives the ranks")
  yield turns, (at.get(obj, "response"), score), ""


def _summary_axes(obj: Any, at: At) -> Iterator[tuple[Turns, Any, str]]:
  """Yields one summary with its overall score."""
  summary = at.get(obj, "summary", dict)
  axes = at.get(summary, "axes", dict, where="summary.")
  score = _number(axes.get("overall"))
  if score is None:
    raise Skip(_NO_SCORE)
  text = at.get(summary, "text", where="summary.")
  if len(axes) > 1:
    at.notes.add("scores other than overall, which gives the ranks")
  yield summary_prompt(obj, at), (text, score), at.identity(obj, "worker")


def _group(rows: list[Any], turns: Turns, at: At) -> Iterator[Record]:
  """Yields the ranking of all replies to one prompt."""
  yield from ranking(turns, [t for t, _ in rows], [s for _, s in rows], at)


def _has_list(kind: type) -> Any:
  def fits(obj: Any) -> bool:
    if not isinstance(obj, dict) or not first_of(obj, _PROMPTS):
      return False
    value = obj.get(first_of(obj, _LISTS))
    return (
      isinstance(value, list) and bool(value) and isinstance(value[0], kind)
    )

  return fits


def _is_parallel(obj: Any) -> bool:
  return _has_list(str)(obj) and bool(
    first_of(obj, ("scores", "ratings", "ranks"))
  )


_GRADES = "counted: only the order is used"
_LIST = (
  "the replies: their text; their score (highest best) or rank (lowest best),"
  " UltraFeedback's overall_score before the mean of its ratings; without"
  " either a prompt"
)
SCORED = Format(
  "scored or ranked replies",
  _has_list(dict),
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
    "scores": f"their scores, highest best; {_GRADES}",
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
