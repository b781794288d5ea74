"""Writes the world as ordinary files, in the formats of docs/data.md."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.world import tasks as public
from instructgpt_jax.world import words
from instructgpt_jax.world.comparisons import compare
from instructgpt_jax.world.demonstrations import demonstrate
from instructgpt_jax.world.documents import (
  Web,
  make_web,
  prompts_of,
  write_documents,
)
from instructgpt_jax.world.facts import World, make_world
from instructgpt_jax.world.labelers import TRAINING
from instructgpt_jax.world.requests import FAMILIES, Request

# Salts that separate the random streams.
_TRAIN, _VALID = 0, 1


@dataclasses.dataclass(frozen=True)
class WorldFiles:
  """Paths of the world's files."""

  world: str  # {"seed", "prefixes", …}
  pretraining: str  # {"text", "split"}
  demonstrations: str  # {"prompt", "completion", "labeler_id", "split"}
  prompts: str  # {"prompt", "split", "family"}
  # {"prompt", "completions", "ranks", "split"}; may be missing
  public_comparisons: str
  public: str  # the tasks' train split as {"prompt", "completion", "split"}
  tasks: str  # {"kind", "prompt", "reference" | "choices" and "answer"}


def world_files(directory: str | Path) -> WorldFiles:
  """Returns the paths of a world's files in a directory."""
  root = Path(directory)
  return WorldFiles(
    world=str(root / "world.json"),
    **{
      field.name: str(root / f"{field.name}.jsonl")
      for field in dataclasses.fields(WorldFiles)
      if field.name != "world"
    },
  )


def write_world(
  directory: str | Path,
  *,
  seed: int = 0,
  pretraining_tokens: int = 2_500_000,
  valid_tokens: int = 60_000,
  demonstrations: int = 1000,
  valid_demonstrations: int = 150,
  train_prompts: int = 6000,
  valid_prompts: int = 600,
  test_prompts: int = 1800,
  task_items: int = 250,
  public_items: int = 500,
  public_comparisons: int = 24_000,
  valid_comparisons: int = 300,
  quality: dict[str, float] | None = None,
  registers: dict[str, float] | None = None,
) -> WorldFiles:
  """Generates a world and writes its files, each atomically.

  Args:
    directory: directory of the files; created if missing.
    seed: seed of the world and of all draws in it.
    pretraining_tokens: number of words of the web, with one end-of-text a
      document.
    valid_tokens: number of words of other documents of the same web.
    demonstrations: number of train demonstrations.
    valid_demonstrations: number of validation demonstrations.
    train_prompts: largest number of distinct train prompts; small families
      have fewer.
    valid_prompts: number of distinct validation prompts.
    test_prompts: number of distinct test prompts.
    task_items: number of items of each public task.
    public_items: number of instructions of each public task, for tuning on
      them instead of demonstrations.
    public_comparisons: number of the web's questions whose replies readers
      ranked; 0 writes no such file.
    valid_comparisons: number of validation questions likewise.
    quality: personas of the demonstrations.
    registers: shares of the web's registers.

  Returns:
    The paths.
  """
  paths = world_files(directory)
  world = make_world(seed)
  web = make_web(world, seed)
  files.write_jsonl_atomic(
    paths.pretraining,
    (
      {"text": text, "split": split}
      for split, tokens, salt in (
        ("train", pretraining_tokens, _TRAIN),
        ("valid", valid_tokens, _VALID),
      )
      for _, text in write_documents(
        web, tokens, 2 * seed + salt, registers=registers
      )
    ),
  )
  prompts = {
    split: draw_prompts(world, split, count, seed)
    for split, count in (
      ("train", train_prompts),
      ("valid", valid_prompts),
      ("test", test_prompts),
    )
  }
  files.write_jsonl_atomic(
    paths.prompts,
    (
      {"prompt": text, "split": split, "family": request.family}
      for split, pairs in prompts.items()
      for request, text in pairs
    ),
  )
  files.write_jsonl_atomic(
    paths.demonstrations,
    _demonstrations(world, seed, demonstrations, "train", quality)
    + _demonstrations(world, seed, valid_demonstrations, "valid", quality),
  )
  files.write_jsonl_atomic(
    paths.tasks,
    (
      item
      for kind in public.KINDS
      for item in public.make_items(world, kind, task_items, seed)
    ),
  )
  files.write_jsonl_atomic(paths.public, _public(world, seed, public_items))
  if public_comparisons:
    files.write_jsonl_atomic(
      paths.public_comparisons,
      _comparisons(web, seed, public_comparisons, "train")
      + _comparisons(
        make_web(world, seed, split="valid", per_family=200),
        seed,
        valid_comparisons,
        "valid",
      ),
    )
  files.write_json_atomic(
    paths.world, {"seed": seed, "prefixes": list(words.PREFIXES)}
  )
  return paths


def load_world(directory: str | Path) -> World:
  """Loads the world whose files are in a directory."""
  path = world_files(directory).world
  record = files.read_json(path)
  seed = record.get("seed") if isinstance(record, dict) else None
  if not isinstance(seed, int):
    raise UserError(
      "is not the description of a world",
      file=path,
      field="seed",
      fix="write the world again",
      code="not_a_world",
    )
  return make_world(seed)


def draw_prompts(
  world: World, split: str, count: int, seed: int
) -> list[tuple[Request, str]]:
  """Draws distinct prompts of one split, families by share, shuffled.

  A family with fewer prompts than its share contributes all of them; the other
  families fill the rest.
  """
  rng = random.Random(f"prompts {split} {seed}")
  pools = {
    family: prompts_of(world, family, split, max(count // 4, 200), rng)
    for family in FAMILIES
  }
  taken: dict[str, int] = dict.fromkeys(FAMILIES, 0)
  left = count
  while left > 0:
    open_ = [f for f in FAMILIES if taken[f] < len(pools[f])]
    if not open_:
      break
    whole = sum(FAMILIES[f] for f in open_)
    before = left
    for family in open_:
      share = max(1, round(before * FAMILIES[family] / whole))
      more = min(share, len(pools[family]) - taken[family], left)
      taken[family] += more
      left -= more
  drawn = [p for f in FAMILIES for p in pools[f][: taken[f]]]
  rng.shuffle(drawn)
  return drawn


def _public(world: World, seed: int, count: int) -> list[dict[str, Any]]:
  rng = random.Random(f"public {seed}")
  kinds = [k for k in public.KINDS if k != "facts"]
  lines = [
    public.as_demonstration(item)
    | {"split": "valid" if i % 10 == 9 else "train"}
    for kind in kinds
    for i, item in enumerate(
      public.make_items(world, kind, count, seed, "train")
    )
  ]
  rng.shuffle(lines)
  return lines


def _comparisons(
  web: Web, seed: int, count: int, split: str
) -> list[dict[str, Any]]:
  rng = random.Random(f"comparisons {split} {seed}")
  return [compare(web, rng) | {"split": split} for _ in range(count)]


def _demonstrations(
  world: World,
  seed: int,
  count: int,
  split: str,
  quality: dict[str, float] | None,
) -> list[dict[str, Any]]:
  rng = random.Random(f"demonstrations {split} {seed}")
  prompts = draw_prompts(world, split, count, seed)[:count]
  return [
    {
      "prompt": text,
      "completion": demonstrate(request, rng, quality=quality),
      "labeler_id": rng.choice(TRAINING),
      "split": split,
    }
    for request, text in prompts
  ]
