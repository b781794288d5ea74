"""Public tasks that measure the alignment tax.

Items have the format of the web's registers, with combinations that are in no
document. Nothing here runs a model. An item has either a `reference` (greedy
completion, cut at the first full stop, scored by exact match and F1) or
`choices` (the one with the best mean log-probability per token).
"""

from __future__ import annotations

import random
from typing import Any

from instructgpt_jax.world.documents import (
  RATINGS,
  make_passage,
  make_review,
  make_sentence,
)
from instructgpt_jax.world.facts import World
from instructgpt_jax.world.requests import split_of

KINDS = ("translation", "reading", "sentiment", "facts")


def make_items(
  world: World, kind: str, count: int, seed: int, split: str = "test"
) -> list[dict[str, Any]]:
  """Draws distinct items of one kind.

  Args:
    world: world of the facts that kind `facts` asks about.
    kind: one of `KINDS`.
    count: number of items; `facts` has at most one for each stated fact.
    seed: seed of the draws.
    split: "test", or "train" for combinations that documents may contain;
      `facts` asks about the same facts in both.

  Returns:
    Dicts with `kind`, `prompt`, and `reference` or `choices` and `answer` (an
    index).
  """
  salt = "" if split == "test" else f" {split}"
  rng = random.Random(f"tasks {kind} {seed}{salt}")
  if kind == "facts":
    return _fact_items(world, count, rng)
  make = {
    "translation": _translation,
    "reading": _reading,
    "sentiment": _sentiment,
  }[kind]
  items: dict[str, dict[str, Any]] = {}
  while len(items) < count:
    key, item = make(rng)
    if split_of(key) == split:
      items.setdefault(item["prompt"], {"kind": kind} | item)
  return list(items.values())


def as_demonstration(item: dict[str, Any]) -> dict[str, str]:
  """Formats an item as an instruction with its answer, as FLAN does."""
  answer = item.get("reference") or item["choices"][item["answer"]]
  return {"prompt": item["prompt"], "completion": f"{answer} ."}


def _translation(rng: random.Random) -> tuple[str, dict[str, Any]]:
  ours, theirs = make_sentence(rng)
  prompt = f"english : {ours} . lingo :"
  return f"translation {ours}", {"prompt": prompt, "reference": theirs}


def _reading(rng: random.Random) -> tuple[str, dict[str, Any]]:
  passage, asked = make_passage(rng, rng.randint(3, 5), 1)
  question, answer = asked[0]
  prompt = f"text : {passage} question : {question} answer :"
  return f"passage {passage}", {"prompt": prompt, "reference": answer}


def _sentiment(rng: random.Random) -> tuple[str, dict[str, Any]]:
  text, rating = make_review(rng)
  item = {
    "prompt": f"review : {text} rating :",
    "choices": list(RATINGS),
    "answer": RATINGS.index(rating),
  }
  return f"review {text}", item


def _fact_items(
  world: World, count: int, rng: random.Random
) -> list[dict[str, Any]]:
  items = []
  for fact in world.facts:
    if fact.known:
      others = [v for v in fact.attribute.domain if v != fact.true]
      choices = rng.sample(others, 3)
      answer = rng.randrange(4)
      choices.insert(answer, fact.true)
      template = fact.attribute.statements[1].split(" {v}")[0]
      items.append({
        "kind": "facts",
        "prompt": template.replace("{e}", fact.entity),
        "choices": choices,
        "answer": answer,
      })  # fmt: skip
  return rng.sample(items, min(count, len(items)))


def first_sentence(completion: str) -> str:
  """Returns the text before the first full stop, tag or line end."""
  tokens = []
  for word in completion.split("\n")[0].split():
    if word in (".", "U:", "A:"):
      break
    tokens.append(word)
  return " ".join(tokens)


def exact_match(completion: str, reference: str) -> float:
  """Returns 1.0 if the first sentence is the reference, else 0.0."""
  return float(first_sentence(completion) == reference)


def choice_accuracy(logps: list[float], answer: int) -> float:
  """Returns 1.0 if the answer is most likely, ties to the first; else 0.0.

  Args:
    logps: mean log-probability per token of each choice.
    answer: index of the right choice.
  """
  return float(max(range(len(logps)), key=logps.__getitem__) == answer)
