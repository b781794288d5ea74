"""Judges that compare two answers: a language model asked for a verdict.

The judge reads a prompt and two answers, A and B, and says A, B or tie. A local
model says it by the log-likelihood of the three words, so nothing has to be
parsed. Each pair is judged in both orders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.judge_pairs import Pair
from instructgpt_jax.evaluation.reply_log import ReplyLog
from instructgpt_jax.runs import files

TEMPLATE = """\
Two answers to a prompt are compared. The better answer follows the prompt,
is correct, and helps without doing harm. A longer answer is not better for its
length, and the order of the answers does not matter.

[Prompt]
{prompt}

[Answer A]
{answer_a}

[Answer B]
{answer_b}

Which answer is better? Reply with one word: A, B or tie.
Verdict:"""
WORDS: Mapping[str, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}
TOO_LONG = "longer than the judge's context"
UNPARSABLE = "not A, B or tie"
_BORDER = 16  # characters of a question that its continuation is encoded after
_FIELDS = ("prompt", "answer_a", "answer_b")
_FIELD = re.compile("{(" + "|".join(_FIELDS) + ")}")


class Verdict(NamedTuple):
  """What a judge says about two answers in one order.

  Attributes:
    value: 1 if A is better, ½ for a tie, 0 if B is; None without a verdict.
    probability: P(A) + ½ P(tie) where the judge gives probabilities.
    reply: what it said.
    problem: why there is no verdict.
  """

  value: float | None
  probability: float | None = None
  reply: str = ""
  problem: str = ""


class PairJudge(Protocol):
  """Answers questions that show a prompt and two answers each."""

  name: str

  def __call__(self, questions: Sequence[str]) -> list[Verdict]: ...


class Judged(NamedTuple):
  """A pair's verdicts, turned to its first answer.

  Attributes:
    as_a: verdict with the first answer shown as A.
    as_b: verdict with the first answer shown as B, turned: 1 means that the
      first answer is better here too.
  """

  as_a: Verdict
  as_b: Verdict

  @property
  def preference(self) -> float | None:
    """Mean of both orders, 1 for the first answer; None without both."""
    if self.as_a.value is None or self.as_b.value is None:
      return None
    return (self.as_a.value + self.as_b.value) / 2


def judge_pairs(
  judge: PairJudge,
  pairs: Sequence[Pair],
  template: str = TEMPLATE,
  on_progress: Callable[[int], Any] | None = None,
  chunk: int = 32,
) -> list[Judged]:
  """Judges each pair in both orders.

  Args:
    judge: the judge.
    pairs: the pairs.
    template: text with {prompt}, {answer_a} and {answer_b}.
    on_progress: called with the number of pairs after each chunk.
    chunk: pairs that the judge gets at a time.
  """
  judged = []
  for start in range(0, len(pairs), chunk):
    part = pairs[start : start + chunk]
    verdicts = judge(
      [render(template, p.prompt, p.first, p.second) for p in part]
      + [render(template, p.prompt, p.second, p.first) for p in part]
    )
    judged += [
      Judged(as_a, _turn(as_b))
      for as_a, as_b in zip(
        verdicts[: len(part)], verdicts[len(part) :], strict=True
      )
    ]
    if on_progress is not None:
      on_progress(len(part))
  return judged


def _turn(verdict: Verdict) -> Verdict:
  value, probability = (
    None if x is None else 1 - x for x in (verdict.value, verdict.probability)
  )
  return verdict._replace(value=value, probability=probability)


def render(template: str, prompt: str, answer_a: str, answer_b: str) -> str:
  """Fills a template; braces in the texts stay as they are."""
  texts = {"prompt": prompt, "answer_a": answer_a, "answer_b": answer_b}
  return _FIELD.sub(lambda match: texts[match[1]], template)


def read_template(path: str) -> str:
  """Reads a template from a file; one line break at its end is dropped.

  Raises:
    UserError: the file cannot be read, or `bad_template`, it lacks a field.
  """
  text = files.read_text(path, fix="give a text file").removesuffix("\n")
  for name in _FIELDS:
    if f"{{{name}}}" not in text:
      raise UserError(
        f"does not contain {{{name}}}",
        file=path,
        field="--template",
        fix="write {prompt}, {answer_a} and {answer_b} where the texts go",
        code="bad_template",
      )
  return text


class ScoringModel(Protocol):
  """A language model that scores tokens: `language_model.TextModel`."""

  context: int
  tokenizer: Any

  def log_likelihoods_of_ids(
    self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
  ) -> list[Any]: ...


class LikelihoodJudge:
  """Local language model; the likeliest of A, B and tie is its verdict.

  Names of special tokens in a question are encoded as text, so that no answer
  can end its turn.

  Attributes:
    name: its directory.
  """

  def __init__(self, model: ScoringModel, name: str, *, use_chat: bool):
    """Makes a judge.

    Args:
      model: the model.
      name: its directory.
      use_chat: whether the question is a user's turn of the model's chat
        template, and the verdict the assistant's reply.
    """
    self._model, self.name, self._use_chat = model, name, use_chat

  def __call__(self, questions: Sequence[str]) -> list[Verdict]:
    """Returns a verdict on each question."""
    encoded = [self._encode(question) for question in questions]
    fits = [
      # The last token of a word is predicted and not read.
      len(context) + max(map(len, words)) <= self._model.context + 1
      for context, words in encoded
    ]
    scores = iter(
      self._model.log_likelihoods_of_ids(
        [
          (context, word)
          for (context, words), is_short in zip(encoded, fits, strict=True)
          if is_short
          for word in words
        ]
      )
    )
    return [
      _likeliest([next(scores).total for _ in WORDS])
      if is_short
      else Verdict(None, problem=TOO_LONG)
      for is_short in fits
    ]

  def _encode(self, question: str) -> tuple[list[int], list[list[int]]]:
    """Returns the ids of a question, and of each word as its continuation."""
    tokenizer = self._model.tokenizer
    if self._use_chat:
      return (
        tokenizer.encode_turns([Turn("user", question)]),
        tokenizer.encode_replies(list(WORDS)),
      )
    text = question.rstrip(" ")  # Words begin with their blank.
    lead = "" if text[-1:].isspace() else " "
    words = tokenizer.encode_after(
      [lead + word for word in WORDS], [text[-_BORDER:]] * len(WORDS)
    )
    return [*tokenizer.begin, *tokenizer.encode(text)], words


class ResumedJudge:
  """Judge whose verdicts are on disk; it is asked for the others alone.

  Attributes:
    name: name of the judge.
  """

  def __init__(self, judge: PairJudge, replies: ReplyLog, identity: str):
    """Wraps a judge.

    Args:
      judge: the judge.
      replies: its verdicts of an earlier run; gets those of this run.
      identity: what its verdicts depend on beside the question.
    """
    self._judge, self._replies, self._identity = judge, replies, identity
    self.name = judge.name

  def __call__(self, questions: Sequence[str]) -> list[Verdict]:
    """Returns a verdict on each question."""
    requests = [f"{self._identity}\n{question}" for question in questions]
    stored = [self._replies.get(request) for request in requests]
    missing = [i for i, reply in enumerate(stored) if reply is None]
    new = self._judge([questions[i] for i in missing]) if missing else []
    for i, verdict in zip(missing, new, strict=True):
      stored[i] = json.dumps(verdict)
      self._replies.add(requests[i], stored[i])
    return [Verdict(*json.loads(reply)) for reply in stored]


def _likeliest(log_likelihoods: Sequence[float]) -> Verdict:
  """Returns the likeliest word's verdict; equal likelihoods of A and B tie."""
  words = list(WORDS)
  logp = np.asarray(log_likelihoods, np.float64)
  probabilities = np.exp(logp - np.logaddexp.reduce(logp))
  best = [w for w, x in zip(words, logp, strict=True) if x == logp.max()]
  word = best[0] if len(best) == 1 else "tie"
  expected = float(probabilities @ np.array(list(WORDS.values())))
  return Verdict(WORDS[word], expected, word)


_REPLY = re.compile(r"(?:verdict:)?[\W_]*(a|b|tie)[\W_]*", re.IGNORECASE)
_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)


def parse_reply(reply: str) -> Verdict:
  """Reads a verdict that a model wrote.

  The whole reply has to be A, B or tie, in any case, after "Verdict:" or not,
  with nothing but punctuation around it. A thought ahead of it, between <think>
  and </think>, does not count.
  """
  thought = _THOUGHT.match(reply)
  match = _REPLY.fullmatch(reply[thought.end() if thought else 0 :].strip())
  if not match:
    return Verdict(None, reply=reply, problem=UNPARSABLE)
  word = match[1].lower()
  return Verdict(WORDS[word if word == "tie" else word.upper()], reply=reply)
