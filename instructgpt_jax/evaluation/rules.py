"""Rule filter: a baseline that rejects answers with listed phrases."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from instructgpt_jax.evaluation.evaluator import (
  Answers,
  Evaluator,
  Model,
  recorded_logp,
)
from instructgpt_jax.training import sampling


def answer_filtered(
  evaluator: Evaluator,
  model: Model,
  phrases: Sequence[str],
  refusal: str,
  *,
  draws: int,
  temperature: float,
  prefix: str = "",
) -> Answers:
  """Answers each prompt with the first allowed sample, or with a refusal.

  Args:
    evaluator: see `Evaluator`.
    model: the model that answers.
    phrases: an answer that contains one of them as whole words is rejected.
    refusal: answer if all samples are rejected; its RM score and KL are those
      of the last rejected sample.
    draws: samples per prompt.
    temperature: sampling temperature.
    prefix: text before each prompt.
  """
  ids = evaluator.encode(prefix, evaluator.prompts)
  sampled = evaluator.sample(
    model, ids, temperature=temperature, samples=draws, stream=20
  )
  texts = sampling.texts(sampled, evaluator.tokenizer)
  allowed = np.array([is_allowed(text, phrases) for text in texts])
  by_prompt = allowed.reshape(-1, draws)
  first = np.where(by_prompt.any(axis=1), by_prompt.argmax(axis=1), draws - 1)
  rows = first + draws * np.arange(len(by_prompt))
  rollout = jax.tree.map(lambda x: x[rows], sampled)
  logp = recorded_logp(rollout)
  if prefix:
    plain = evaluator.encode("", evaluator.prompts)
    rollout = sampling.with_prompts(rollout, plain, evaluator.tokenizer)
  answers = evaluator.judge_rollout(rollout, logp, 1)
  shown = [texts[row] if allowed[row] else refusal for row in rows]
  ended = np.where(allowed[rows], np.asarray(rollout.ended), True)
  rollout = dataclasses.replace(rollout, ended=ended)
  prompts = [p.turns[-1].text for p in evaluator.prompts]
  return dataclasses.replace(
    answers,
    texts=shown,
    rollout=rollout,
    judgement=evaluator.judge(prompts, shown, rollout),
  )


def is_allowed(text: str, phrases: Sequence[str]) -> bool:
  """Returns whether a text contains none of the phrases as whole words."""
  padded = f" {' '.join(text.split())} "
  return not any(f" {phrase.strip()} " in padded for phrase in phrases)
