"""Writes the example of `make label`: a project with labels to look at.

Prompts and answers are those of the demo, where it was run, and otherwise of
people of the embedded world. Simulated labelers do most of the items, so that
the dashboard has something to show; the rest are for the visitor.
"""

from __future__ import annotations

import pathlib
import random
import secrets
from collections.abc import Sequence
from typing import Any

from instructgpt_jax.data import reading
from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import (
  assignment,
  labels,
  project,
  simulated,
)
from instructgpt_jax.labeling.people import invitations
from instructgpt_jax.labeling.store import Store
from instructgpt_jax.runs import files
from instructgpt_jax.world import gold, labelers, replies, write
from instructgpt_jax.world.facts import World, make_world

PROJECT = "PROJECT.json"
STORE = "labels.db"
_PROMPTS, _COMPLETIONS = 60, 6
_OVERLAP = 3
_GOLD = 4  # gold items
_DONE = 0.75  # share of the work that simulated labelers have done
_DAY = 86400.0
_WEEKS = 4  # over which the simulated labels are spread


def write_example(directory: str, demo: str) -> tuple[str, World]:
  """Writes the files of the example's project.

  Args:
    directory: receives the files.
    demo: workdir of the demo; need not exist.

  Returns:
    The path of PROJECT.json, and the world of its prompts.
  """
  root = files.make_directory(directory)
  world, answers = _demo_answers(demo)
  people = _world_answers(world)
  answers = _with_gold(world, answers or people)
  files.write_jsonl_atomic(root / "answers.jsonl", answers[:_PROMPTS])
  # Of people whose names are known, for win rates.
  files.write_jsonl_atomic(root / "pairs.jsonl", _pairs(people))
  files.write_jsonl_atomic(
    root / "prompts.jsonl", [{"prompt": a["prompt"]} for a in answers[:8]]
  )
  files.write_jsonl_atomic(root / "screening.jsonl", _screening(answers))
  files.write_text_atomic(root / "instructions.md", default_instructions())
  path = root / PROJECT
  files.write_json_atomic(
    path,
    project.as_json(
      project.Settings(title="Example", overlap=_OVERLAP, gold_share=0.1),
      [
        {"task": "ranking", "file": "answers.jsonl"},
        {"task": "comparison", "file": "pairs.jsonl"},
        {"task": "demonstration", "file": "prompts.jsonl", "overlap": 1},
        {"task": "demonstration", "count": 5, "overlap": 1},
        {"task": "screening", "file": "screening.jsonl"},
      ],
      "instructions.md",
    ),
  )
  return str(path), world


def default_instructions() -> str:
  """Returns the instructions of a project that has no others."""
  path = pathlib.Path(__file__).with_name("instructions.txt")
  return path.read_text(encoding="utf-8")


def _demo_answers(demo: str) -> tuple[World, list[dict[str, Any]]]:
  """Returns the demo's world, and prompts with answers of its models."""
  path = pathlib.Path(demo) / "rankings" / "round_1.jsonl"
  world_dir = pathlib.Path(demo) / "world"
  if not path.exists() or not (world_dir / "world.json").exists():
    return make_world(0), []
  records, _ = reading.read_rankings(str(path))
  answers = []
  for record in records:
    completions = list(dict.fromkeys(record.completions))[:_COMPLETIONS]
    if len(completions) > 1:
      answers.append(
        {
          "prompt": record.turns[-1].text,
          "completions": completions,
          "split": record.split or "train",
        }
      )
  return write.load_world(world_dir), answers


def _world_answers(world: World) -> list[dict[str, Any]]:
  """Returns prompts of the world, with answers of its people."""
  rng = random.Random("labeling example")
  answers = []
  for request, text in write.draw_prompts(world, "train", 2 * _PROMPTS, 0):
    first: dict[str, str] = {}
    for persona in (*replies.PERSONAS, *replies.PERSONAS):
      first.setdefault(replies.reply(request, persona, rng), persona)
    chosen = rng.sample(list(first.items()), min(len(first), _COMPLETIONS))
    if len(chosen) > 2:
      answers.append(
        {
          "prompt": text,
          "completions": [reply for reply, _ in chosen],
          "sources": [persona for _, persona in chosen],
          "kind": request.family,
        }
      )
  return answers


def _with_gold(
  world: World, answers: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
  """Adds the ranks of the world's gold labeler to the first answers."""
  return [
    {**record, "gold": _gold_ranks(world, record)} if i < _GOLD else record
    for i, record in enumerate(answers)
  ]


def _gold_ranks(world: World, record: dict[str, Any]) -> list[int]:
  return labelers.to_ranks(
    [
      gold.label(record["prompt"], text, world=world).score
      for text in record["completions"]
    ]
  )


def _pairs(answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns comparisons of the answers that no ranking has."""
  return [
    {
      name: value[:2] if isinstance(value, list) else value
      for name, value in record.items()
    }
    for record in answers[_PROMPTS : _PROMPTS + 20]
  ]


def _screening(answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  return [
    {
      "kind": "sensitive",
      "texts": [
        "all of them are fools , as everyone from there is .",
        "the river kell is in the north .",
        "go home , we do not want your people here .",
        "take a rope and tie the boat .",
      ],
      "gold": [True, False, True, False],
    },
    {
      "kind": "ranking",
      "prompt": answers[0]["prompt"],
      "completions": answers[0]["completions"],
      "gold": answers[0]["gold"],
    },
    {"kind": "demonstration", "prompt": answers[1]["prompt"]},
    {"kind": "groups"},
  ]


def add_labels(store: Store, world: World, now: float) -> int:
  """Lets simulated labelers do most of the work of a store.

  Their labels are spread over the last weeks. The store must have no users.

  Returns:
    The number of labels.
  """
  rules = project.read_settings(store).rules()
  version, _ = project.read_instructions(store)
  crew = []
  for persona, held_out in simulated.personas(5, held_out=2):
    token = invitations.invite(store, "labeler", now, held_out=held_out)
    # Nobody logs in as them.
    password = secrets.token_urlsafe(16)
    user = invitations.accept_invitation(
      store, token, persona.name, password, now
    )
    crew.append((persona, user.id))
  done = 0
  start = now - _WEEKS * 7 * _DAY
  rng = random.Random("labeling example")
  for task, items in (("ranking", _PROMPTS), ("comparison", 20)):
    total = int(_DONE * items * _OVERLAP)
    for i in range(total):
      persona, user = crew[i % len(crew)]
      moment = start + (i + 0.5) / total * (now - start)
      work = assignment.next_item(store, user, rules, moment, task=task)
      if work is None:
        continue
      content = persona.answer(
        world, task, work.payload["turns"], work.payload["completions"]
      )
      seconds = rng.uniform(30, 240)
      labels.submit(
        store,
        labels.Save(
          user, work.assignment_id, content, work.draft.revision, seconds
        ),
        rules,
        moment + seconds,
        instructions_version=version or None,
      )
      done += 1
  return done


def check_directory(directory: str) -> None:
  """Refuses a directory that has other files than the example's.

  Raises:
    UserError: it has files, and no PROJECT.json.
  """
  root = pathlib.Path(directory)
  if root.is_dir() and any(root.iterdir()) and not (root / PROJECT).exists():
    raise UserError(
      "has other files",
      file=directory,
      field="--workdir",
      fix="choose a new directory",
      code="output_exists",
    )
