"""Public pairs: two numbered replies and a verdict."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from instructgpt_jax.data.formats import skips
from instructgpt_jax.data.formats.format import Format, choose, first_of, has
from instructgpt_jax.data.formats.json_values import is_blank, is_null
from instructgpt_jax.data.formats.pairs import GRADED, ORDER_ONLY, PAIR, pair
from instructgpt_jax.data.formats.record_reader import RecordReader
from instructgpt_jax.data.formats.skips import Skip
from instructgpt_jax.data.formats.texts import (
  agreeing_prompt,
  instructed,
  read_named_prompt,
)
from instructgpt_jax.data.formats.turns import (
  Turns,
  check_texts,
  read_prompt,
  read_replied,
  user,
)
from instructgpt_jax.data.records import Record


def _outputs(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields the pair of an AlpacaEval or LLMBar record."""
  if "instruction" in obj:
    turns = instructed(obj, "instruction", "input", reader)
  else:
    turns = instructed(obj, "input", "", reader)
  fields = [
    name for name in ("preference", "label") if not is_null(obj.get(name))
  ]
  if not fields and obj.keys().isdisjoint(("preference", "label")):
    reader.get(obj, "preference")
  values = [_preference(obj, name, reader) for name in fields]
  if not values:
    raise Skip(skips.UNRANKED)
  if len(set(values)) > 1:
    raise Skip(skips.CONTRADICTION)
  replies = reader.get(obj, "output_1"), reader.get(obj, "output_2")
  yield from pair(
    turns, replies, values[0], reader, reader.identity(obj, "annotator")
  )


def _preference(
  obj: Mapping[str, Any], field: str, reader: RecordReader
) -> float:
  """Returns 1 or 2 for the better output, or another number for a tie."""
  value = reader.number(obj, field)
  # Labels of 0 and 1 count from 0, and would be a tie and the wrong reply.
  if not (1 <= value <= 2 or (value == 0 and field == "preference")):
    reader.fail(
      f"{obj[field]} is no preference",
      field,
      "write 1 or 2 for the better reply"
      + (", 0 for a tie" if field == "preference" else ""),
      "bad_preference",
    )
  # AlpacaEval writes 1.5, older files 0, for a tie; a weighted preference is
  # a number between 1 and 2.
  if value not in (0, 1, 1.5, 2):
    reader.notes.add(ORDER_ONLY)
    value = 1 if value < 1.5 else 2
  return 0 if value == 1.5 else value


_VOTE = re.compile(r"annotator\d+")


def _pandalm(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields PandaLM's pair; without a majority of annotators it is a tie."""
  turns = instructed(obj, "instruction", "input", reader)
  fields = sorted(f for f in obj if _VOTE.fullmatch(f))
  votes = [reader.whole(obj, f) for f in fields or ["annotator1"]]
  for field, vote in zip(fields, votes, strict=False):
    if vote not in (0, 1, 2):
      reader.fail(
        f"{vote} is no label", field, "write 0, 1 or 2", "bad_preference"
      )
  reader.unused.difference_update(fields)
  winner = next((v for v in (1, 2) if 2 * votes.count(v) > len(votes)), 0)
  if winner and len(set(votes)) > 1:
    reader.notes.add("pairs decided by a majority of annotators")
  replies = reader.get(obj, "response1"), reader.get(obj, "response2")
  yield from pair(turns, replies, winner, reader)


def _shp(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields the pair of SHP; `labels` is 1 where A is better, else 0."""
  turns = read_prompt(reader.get(obj, "history"), "history", reader)
  label = reader.number(obj, "labels")
  if label not in (0, 1):
    reader.fail(
      f"{obj['labels']} is no label", "labels", "write 1 for A, 0 for B",
      "bad_preference",
    )  # fmt: skip
  names = ("score_A", "score_B")
  if any(not is_blank(obj.get(n)) for n in (*names, "score_ratio")):
    reader.notes.add(ORDER_ONLY)
  if not any(is_null(obj.get(name)) for name in names):
    first, second = (reader.number(obj, name) for name in names)
    if (first < second) if label == 1 else (first > second):
      raise Skip(skips.CONTRADICTION)
  replies = reader.get(obj, "human_ref_A"), reader.get(obj, "human_ref_B")
  yield from pair(turns, replies, 1 if label == 1 else 2, reader)


def _webgpt(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields WebGPT's pair; the answer with the higher score is better."""
  question = obj.get("question")
  if isinstance(question, dict):
    turns = read_prompt(
      reader.get(question, "full_text", where="question."), "question", reader
    )
  else:
    turns = read_prompt(reader.get(obj, "question"), "question", reader)
  first, second = reader.number(obj, "score_0"), reader.number(obj, "score_1")
  reader.notes.add(GRADED)
  replies = reader.get(obj, "answer_0"), reader.get(obj, "answer_1")
  better = 0 if first == second else 1 if first > second else 2
  grade = abs(first - second)
  yield from pair(turns, replies, better, reader, grade=grade)


_INFO = ("id", "site", "post", "title", "subreddit", "article")


def summary_prompt(obj: Mapping[str, Any], reader: RecordReader) -> Turns:
  """Returns the prompt of OpenAI's summaries: the post or article."""
  info = reader.get(obj, "info", dict)
  reader.note_others(info, _INFO, "info")
  parts = []
  if not is_blank(info.get("subreddit")):
    name = reader.get(info, "subreddit", where="info.").removeprefix("r/")
    parts.append(f"SUBREDDIT: r/{name}")
  if not is_blank(info.get("title")):
    parts.append(f"TITLE: {reader.get(info, 'title', where='info.')}")
  if not is_blank(info.get("post")):
    parts.append(f"POST: {reader.get(info, 'post', where='info.')}")
  else:
    parts.append(f"ARTICLE: {reader.text(info, 'article', where='info.')}")
  parts.append("TL;DR:")
  return user("\n\n".join(parts))


def _summaries(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields OpenAI's pair of summaries; `choice` is the better one's index."""
  summaries = reader.get(obj, "summaries", list)
  if len(summaries) != 2 or not all(isinstance(s, dict) for s in summaries):
    reader.fail(
      "two objects with a text are expected", "summaries",
      'write [{"text": "..."}, {"text": "..."}]', "completion_count",
    )  # fmt: skip
  texts = tuple(
    reader.get(s, "text", where=f"summaries[{i}].")
    for i, s in enumerate(summaries)
  )
  for summary in summaries:
    reader.note_others(summary, ("text", "policy", "note"), "summaries[]")
  choice = reader.whole(obj, "choice")
  if choice not in (0, 1):
    reader.fail(
      f"{choice} is no index of summaries", "choice", "write 0 or 1",
      "bad_preference",
    )  # fmt: skip
  extra = obj.get("extra")
  if isinstance(extra, dict) and not is_blank(extra.get("confidence")):
    reader.notes.add(ORDER_ONLY)
  prompt = summary_prompt(obj, reader)
  worker = reader.identity(obj, "worker")
  yield from pair(prompt, (texts[0], texts[1]), choice + 1, reader, worker)


def _safe_rlhf(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields PKU-SafeRLHF's pair; the more helpful response is better."""
  better = reader.whole(obj, "better_response_id")
  if better not in (0, 1):
    raise Skip(skips.TIES)
  turns = read_prompt(reader.get(obj, "prompt"), "prompt", reader)
  replies = reader.get(obj, "response_0"), reader.get(obj, "response_1")
  yield from pair(turns, replies, better + 1, reader)


def _strength(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields HelpSteer's pair; a strength below 0 prefers the first reply."""
  first = choose(obj, ("response_1", "response1"), reader) or "response_1"
  second = choose(obj, ("response_2", "response2"), reader) or "response_2"
  turns = agreeing_prompt(obj, ("prompt", "context"), reader)
  if not turns:
    source = first_of(obj, ("prompt", "context")) or "prompt"
    turns = read_named_prompt(obj, source, reader)
  values = [
    reader.number(obj, name)
    for name in ("preference_strength", "overall_preference")
    if not is_null(obj.get(name))
  ]
  if not values:
    raise Skip(skips.UNRANKED)
  if any(values):
    reader.notes.add(GRADED)
  verdicts = {0 if v == 0 else 1 if v < 0 else 2 for v in values}
  if len(verdicts) > 1:
    raise Skip(skips.CONTRADICTION)
  replies = reader.get(obj, first), reader.get(obj, second)
  grade = abs(values[0])
  yield from pair(turns, replies, verdicts.pop(), reader, grade=grade)


_WINNERS = {"model_a": 1, "model_b": 2}


def _arena(obj: Any, reader: RecordReader) -> Iterator[Record]:
  """Yields Chatbot Arena's pair: the last replies of two conversations."""
  sides = [
    read_replied(reader.get(obj, name, list), name, reader)
    for name in ("conversation_a", "conversation_b")
  ]
  for side in sides:
    check_texts(side[:-1], "conversation_a", reader)
  if any(len(s) < 2 or s[-1].role != "assistant" for s in sides):
    raise Skip(skips.NOT_ANSWERING)
  if sides[0][:-1] != sides[1][:-1]:
    raise Skip(skips.PROMPTS_DIFFER)
  winner = _WINNERS.get(reader.get(obj, "winner"), 0)
  texts = sides[0][-1].text, sides[1][-1].text
  judge = reader.identity(obj, "judge")
  yield from pair(sides[0][:-1], texts, winner, reader, judge)


def _is_strength(obj: Any) -> bool:
  return has("prompt", "response_1", "response_2", "preference_strength")(
    obj
  ) or has("context", "response1", "response2", "overall_preference")(obj)


def _is_pandalm(obj: Any) -> bool:
  return has("response1", "response2", without=("overall_preference",))(
    obj
  ) and not obj.keys().isdisjoint(("instruction", "annotator1"))


_GRADES = "counted: only the order is used"
OUTPUTS = Format(
  "AlpacaEval/LLMBar pairs",
  has("output_1", "output_2"),
  _outputs,
  {
    "instruction": "the prompt", "input": "input below the instruction, or the"
    " prompt where it is alone", "output_1": "a reply", "output_2": "a reply",
    "preference": "1 or 2 for the better reply, 0 or 1.5 for a tie; numbers"
    " between are counted: only the order is used",
    "label": "1 or 2 for the better reply", "annotator": "labeler id",
  },
  ("instruction", "output_1", "output_2", "preference"),
  ("generator", "generator_1", "generator_2", "price_per_example",
   "time_per_example", "time_per_annotation", "raw_completion",
   "is_switched_outputs"),
  result=PAIR,
)  # fmt: skip
PANDALM = Format(
  "PandaLM pairs",
  _is_pandalm,
  _pandalm,
  {
    "instruction": "the prompt", "input": "input below the instruction",
    "response1": "a reply", "response2": "a reply",
    "annotator1": "1, 2, or 0 for a tie; with annotator2, …: the majority"
    " decides, without one it is a tie",
  },
  ("instruction", "response1", "response2", "annotator1"),
  ("motivation_app", "cmp_key"),
  result=PAIR,
)  # fmt: skip
SHP = Format(
  "SHP",
  has("history", "human_ref_A", "human_ref_B", "labels"),
  _shp,
  {
    "history": "the prompt", "human_ref_A": "a reply", "human_ref_B": "a reply",
    "labels": "1 where A is better, 0 where B is",
    **dict.fromkeys(("score_A", "score_B", "score_ratio"), _GRADES),
  },
  ("history", "human_ref_A", "human_ref_B", "labels"),
  ("post_id", "domain", "upvote_ratio", "c_root_id_A", "c_root_id_B",
   "created_at_utc_A", "created_at_utc_B", "seconds_difference"),
  result=PAIR,
)  # fmt: skip
WEBGPT = Format(
  "WebGPT comparisons",
  has("question", "answer_0", "answer_1", "score_0", "score_1"),
  _webgpt,
  {
    "question": "the prompt: a text or its `full_text`",
    "answer_0": "a reply", "answer_1": "a reply",
    **dict.fromkeys(("score_0", "score_1"), "the higher one is better; equal"
                    " ones tie; the difference is the grade"),
  },
  ("question", "answer_0", "answer_1", "score_0", "score_1"),
  ("tokens_0", "tokens_1"),
  result=PAIR,
)  # fmt: skip
SUMMARIES = Format(
  "OpenAI summary comparisons",
  has("info", "summaries", "choice"),
  _summaries,
  {
    "info": "the prompt: `subreddit`, `title`, `post` or `article`",
    "summaries": "the replies: `text`", "choice": "index of the better reply",
    "worker": "labeler id",
    "extra": "`confidence` is counted: only the order is used",
  },
  ("info", "summaries", "choice"),
  ("batch",),
  result=PAIR,
)  # fmt: skip
SAFE_RLHF = Format(
  "PKU-SafeRLHF",
  has("prompt", "response_0", "response_1", "better_response_id"),
  _safe_rlhf,
  {
    "prompt": "the prompt", "response_0": "a reply", "response_1": "a reply",
    "better_response_id": "index of the more helpful reply",
  },
  ("prompt", "response_0", "response_1", "better_response_id"),
  result=PAIR,
)  # fmt: skip
STRENGTH = Format(
  "HelpSteer preferences",
  _is_strength,
  _strength,
  {
    "prompt": "the prompt", "context": "the prompt as messages",
    **dict.fromkeys(("response_1", "response_2", "response1", "response2"),
                    "a reply"),
    **dict.fromkeys(("preference_strength", "overall_preference"), "below 0:"
                    " the first is better, above 0: the second, 0: a tie;"
                    " its size is the grade"),
  },
  ("prompt", "response_1", "response_2", "preference_strength"),
  ("domain",),
  result=PAIR,
)  # fmt: skip
ARENA = Format(
  "Chatbot Arena",
  has("conversation_a", "conversation_b", "winner"),
  _arena,
  {
    "conversation_a": "a conversation", "conversation_b": "a conversation",
    "winner": "model_a or model_b; anything else is a tie",
    "judge": "labeler id",
  },
  ("conversation_a", "conversation_b", "winner"),
  ("question_id", "model_a", "model_b", "anony", "tstamp", "turn"),
  result=PAIR,
)  # fmt: skip
