"""Judges of known preference, and the files that they read."""

import json
import math
import types

import numpy as np

from instructgpt_jax.evaluation import pair_judges

TEMPLATE = "{prompt}\x1f{answer_a}\x1f{answer_b}"


class RuleJudge:
  """Judge that follows a rule of the two texts: 1, ½ or 0 for answer A."""

  name = "a rule"

  def __init__(self, rule):
    self.rule = rule

  def __call__(self, questions):
    verdicts = []
    for question in questions:
      _, a, b = question.split("\x1f")
      value = self.rule(a, b)
      verdicts.append(
        pair_judges.Verdict(None, reply="I think A", problem="unclear")
        if value is None
        else pair_judges.Verdict(value)
      )
    return verdicts


def longer(a, b):
  return (np.sign(len(a) - len(b)) + 1) / 2


class WordTokenizer:
  """Splits texts at blanks; an id is a word."""

  begin = ()

  def __init__(self, template=None):
    self.template = template

  def encode(self, text):
    return text.split()

  def encode_after(self, texts, contexts):
    return [[text] for text in texts]

  def encode_turns(self, turns):
    return self.encode(f"<user>{turns[0].text}<assistant>")

  def encode_replies(self, replies):
    return [[reply] for reply in replies]


class WordModel:
  """Model that gives each word a log-likelihood by the context."""

  context = 200

  def __init__(self, likelihoods, tokenizer=None):
    self.likelihoods, self.asked = likelihoods, []
    self.tokenizer = tokenizer or WordTokenizer()

  def log_likelihoods_of_ids(self, requests):
    self.asked += requests
    return [
      types.SimpleNamespace(
        total=math.log(self.likelihoods(" ".join(context))[word.strip()])
      )
      for context, (word,) in requests
    ]


def write_lines(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)
