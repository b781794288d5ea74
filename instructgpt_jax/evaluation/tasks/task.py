"""A task: how its file is read, how it is asked, and how it is scored."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Reference = str | tuple[str, ...]  # one text, or the texts of several spans
Scores = Mapping[str, float]  # measure → score of one item


class LogLikelihood(Protocol):
  """Log-likelihood of a continuation.

  Attributes:
    total: sum over its tokens, in nats.
    is_greedy: whether each token is the most likely one.
    tokens: number of its tokens.
  """

  @property
  def total(self) -> float: ...
  @property
  def is_greedy(self) -> bool: ...
  @property
  def tokens(self) -> int: ...


class Model(Protocol):
  """What a task needs of a language model.

  Attributes:
    context: most tokens that it reads; the beginning of a longer prompt is
      cut.
  """

  @property
  def context(self) -> int: ...

  def encode(self, text: str) -> Sequence[int]:
    """Encodes a prompt."""
    ...

  def log_likelihoods(
    self, pairs: Sequence[tuple[str, str]]
  ) -> Sequence[LogLikelihood]:
    """Returns the likelihood of each continuation after its context."""
    ...

  def generate(
    self, prompts: Sequence[str], *, stop: Sequence[str], max_tokens: int
  ) -> Sequence[str]:
    """Continues prompts greedily, up to the first of the stop strings."""
    ...

  def chat(self, turns: Sequence[Mapping[str, str]]) -> str:
    """Writes turns of role and content as a prompt that a reply follows."""
    ...


# (questions, answers) → measure → score of each answer.
Judge = Callable[[Sequence[str], Sequence[str]], Mapping[str, Sequence[float]]]


@dataclasses.dataclass(frozen=True)
class Item:
  """One item of a task.

  Attributes:
    id: its name in files of results: the publisher's, or its line.
    prompt: what the model continues.
    answer: what an example shows after the prompt, with the blank before it.
    references: right answers of an item that is answered by generation.
    choices: continuations that are compared by likelihood.
    right: indices of the right choices.
    group: items that share a text, such as a passage. They are no examples of
      each other, and one unit of intervals.
    stratum: a draw has as many items of each stratum, where there are enough.
    extra: what else the score needs.
  """

  id: str
  prompt: str
  answer: str = ""
  references: tuple[Reference, ...] = ()
  choices: tuple[str, ...] = ()
  right: tuple[int, ...] = ()
  group: str = ""
  stratum: str = ""
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Answer(NamedTuple):
  """What a model makes of an item.

  Attributes:
    text: the generated answer.
    likelihoods: those of the choices.
    is_long: whether the text has as many tokens as it may have, so that its end
      may be missing.
  """

  text: str = ""
  likelihoods: tuple[LogLikelihood, ...] = ()
  is_long: bool = False


@dataclasses.dataclass(frozen=True)
class CorpusMeasure:
  """A measure of all items together, which is no mean of items.

  Attributes:
    counts: returns an item's summands, [k].
    value: returns the measure of summed counts, [k].
  """

  counts: Callable[[Item, Answer], Sequence[float]]
  value: Callable[[np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Task:
  """A task.

  Attributes:
    name: its name in commands and tables.
    score: (item, answer) → measures; the first one is the task's main measure.
    expected: what its file holds, for errors; "" if it needs no file.
    read: (path, counter of what is not used and why) → items; by default the
      items come from elsewhere.
    instructions: name of a variant → text before prompt and examples. Most
      tasks have one variant, named "".
    paper_shots: examples in the paper's few-shot setting; 0 if the paper has
      none, and examples are then never shown.
    max_tokens: length of a generated answer; 0 if nothing is generated.
    stop: strings that end an answer.
    cue: end of a prompt that asks for the answer, which a chat's turn leaves
      out.
    corpus: measures of all items together.
    packages: optional packages that the score needs, as they are imported.
    judge: name of the judge whose measures are added; "" for none.
    is_judged: whether the judge's measures are the only ones of interest.
  """

  name: str
  score: Callable[[Item, Answer], Scores]
  expected: str = ""
  read: Callable[[str, Counter[str]], Iterable[Item]] = lambda *_: ()
  instructions: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {"": ""}
  )
  paper_shots: int = 0
  max_tokens: int = 0
  stop: tuple[str, ...] = ("\n",)
  cue: str = ""
  corpus: Mapping[str, CorpusMeasure] = dataclasses.field(default_factory=dict)
  packages: tuple[str, ...] = ()
  judge: str = ""
  is_judged: bool = False


def write_prompt(instruction: str, examples: Iterable[Item], item: Item) -> str:
  """Joins instruction, solved examples and the item by blank lines."""
  parts = [example.prompt + example.answer for example in examples]
  return instruction + "\n\n".join([*parts, item.prompt])
