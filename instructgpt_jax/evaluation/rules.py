"""The rule filter: a baseline that learns nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from instructgpt_jax.evaluation.measure import (
  Answers,
  Evaluator,
  Model,
  recorded,
)
from instructgpt_jax.training import sampling


def filtered(
  e: Evaluator,
  model: Model,
  phrases: Sequence[str],
  refusal: str,
  *,
  draws: int,
  temperature: float,
  prefix: str = "",
) -> Answers:
  """The first of several answers without any of the phrases, or a refusal.

  Args:
    e: what models are measured with.
    model: what answers.
    phrases: an answer that holds one of them as whole words is refused.
    refusal: stands where no answer passes; its RM score and KL are those of
      the last answer that was refused.
    draws: answers tried for each prompt.
    temperature: of sampling.
    prefix: text before each prompt.
  """
  ids = e.encode(prefix, e.prompts)
  drawn = e.sample(
    model, ids, temperature=temperature, samples=draws, stream=20
  )
  texts = sampling.texts(drawn, e.tokenizer)
  allowed = np.array([allows(text, phrases) for text in texts])
  tried = allowed.reshape(-1, draws)
  first = np.where(tried.any(axis=1), tried.argmax(axis=1), draws - 1)
  rows = first + draws * np.arange(len(tried))
  rollout = jax.tree.map(lambda x: x[rows], drawn)
  own = recorded(rollout)
  if prefix:
    plain = e.encode("", e.prompts)
    rollout = sampling.with_prompts(rollout, plain, e.tokenizer)
  found = e.judged(rollout, own, 1)
  shown = [texts[row] if allowed[row] else refusal for row in rows]
  ended = np.where(allowed[rows], np.asarray(rollout.ended), True)
  asked = [p.turns[-1].text for p in e.prompts]
  told = dataclasses.replace(rollout, ended=ended)
  return dataclasses.replace(
    found, texts=shown, rollout=told, judged=e.judge(asked, shown, told)
  )


def allows(text: str, phrases: Sequence[str]) -> bool:
  """Whether a text holds none of the phrases as whole words."""
  padded = f" {' '.join(text.split())} "
  return not any(f" {phrase.strip()} " in padded for phrase in phrases)
