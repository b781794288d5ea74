"""Features of a reply that show without understanding it or its prompt.

A linear model of them is a baseline of reward models in the embedded world: it
knows no fact, looks nothing up, and copies nothing. With the claims of replies
as further features it learns from labels which of them are true.
"""

from __future__ import annotations

import numpy as np

from instructgpt_jax.world import requests, words
from instructgpt_jax.world.requests import Premise, Question, Request

# Phrases with which a reply declines.
DECLINING = tuple(
  phrase.removesuffix(" .")
  for phrase in (words.UNKNOWN, words.UNSTATED, words.REFUSAL)
)
_KINDS = (
  *requests.FORMS,
  *("Premise", "List", "Repeat", "Capitals", "Sort", "Reading", "HowTo"),
)
_STYLES = (words.FILLERS, words.INSULTS)
_TOKENS = 10  # of a unit of length


def kind_of(request: Request) -> str:
  """Returns what shows of a prompt's family.

  Whether a question can be answered, a premise is true, or a request is harmful
  does not show.
  """
  if isinstance(request, Question):
    return request.form
  return type(request).__name__


def claims_of(request: Request, reply: str) -> tuple[tuple[str, ...], ...]:
  """Returns what a reply claims about the fact that its prompt is about.

  Returns:
    (entity, attribute, value) for each value that it mentions, or the phrase
    with which it declines; () for prompts that are about no fact.
  """
  if not isinstance(request, Question | Premise):
    return ()
  fact = request.fact
  values = sorted(set(reply.split()) & set(fact.attribute.domain))
  values += [phrase for phrase in DECLINING if phrase in reply]
  return tuple((fact.entity, fact.attribute.name, value) for value in values)


def compute(prompt: str, reply: str, kind: str) -> np.ndarray:
  """Computes the features of a reply.

  Args:
    prompt: the prompt's text.
    reply: the reply's text.
    kind: kind of the prompt, see `kind_of`.

  Returns:
    [F] float64. By kind: which phrase declines, if any; the length; and the
    share of distinct words that the prompt has as well. Then the number of
    phrases that pad, and of insults.
  """
  tokens = set(reply.split())
  of_kind = np.zeros((len(_KINDS), len(DECLINING) + 2))
  of_kind[_KINDS.index(kind)] = [
    *(phrase in reply for phrase in DECLINING),
    len(reply.split()) / _TOKENS,
    len(tokens & set(prompt.split())) / max(1, len(tokens)),
  ]
  styles = [
    sum(reply.count(phrase.removesuffix(" .")) for phrase in phrases)
    for phrases in _STYLES
  ]
  return np.concatenate([of_kind.reshape(-1), styles])
