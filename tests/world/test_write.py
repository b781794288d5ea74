"""Tests the files: formats, splits, determinism, speed."""

import collections
import json
import pathlib
import time
from typing import Any

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.world import (
  facts,
  gold,
  replies,
  requests,
  tasks,
  words,
  write,
)

WORLD = facts.make_world(3)
SMALL: dict[str, Any] = dict(
  seed=3,
  pretraining_tokens=40_000,
  valid_tokens=5_000,
  demonstrations=200,
  valid_demonstrations=40,
  train_prompts=500,
  valid_prompts=60,
  test_prompts=200,
  task_items=30,
  public_comparisons=300,
  valid_comparisons=40,
)


def read(path):
  with open(path, encoding="utf-8") as file:
    return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
  return write.write_world(tmp_path_factory.mktemp("world"), **SMALL)


def test_public_comparisons_rank_replies_of_people_by_gold(paths):
  kinds = collections.Counter()
  for record in read(paths.public_comparisons):
    kinds[record["split"]] += 1
    scores = [
      gold.label(record["prompt"], reply, world=WORLD).score
      for reply in record["completions"]
    ]
    assert len(set(record["completions"])) == len(scores) <= 5
    for a, rank_a in zip(scores, record["ranks"], strict=True):
      for b, rank_b in zip(scores, record["ranks"], strict=True):
        if rank_a < rank_b:
          assert a > b
        elif rank_a == rank_b:
          assert abs(a - b) <= 0.25 / 6 + 1e-9  # a step of the votes
  assert kinds == {"train": 300, "valid": 40}


def test_public_comparisons_hold_no_held_out_prompt_in_training(paths):
  for record in read(paths.public_comparisons):
    request = requests.parse(WORLD, record["prompt"])
    assert requests.split_of(request.key) == record["split"]


def test_no_public_comparisons_are_written_for_none(tmp_path):
  paths = write.write_world(tmp_path, **SMALL | {"public_comparisons": 0})
  assert not pathlib.Path(paths.public_comparisons).exists()


def test_files_have_the_documented_fields(paths):
  for record in read(paths.pretraining):
    assert list(record) == ["text", "split"] and record["text"]
  for record in read(paths.demonstrations):
    assert set(record) == {"prompt", "completion", "labeler_id", "split"}
    assert record["completion"] == record["completion"].strip() != ""
  for record in read(paths.prompts):
    assert set(record) == {"prompt", "split", "family"}
    assert not set(record["prompt"].split()) & set(words.TAGS)
  splits = collections.Counter(r["split"] for r in read(paths.prompts))
  assert splits == {"train": 500, "valid": 60, "test": 200}
  splits = collections.Counter(r["split"] for r in read(paths.demonstrations))
  assert splits == {"train": 200, "valid": 40}


def test_no_file_shares_a_combination_across_splits(paths):
  where = collections.defaultdict(set)
  for record in read(paths.prompts) + read(paths.demonstrations):
    request = requests.parse(WORLD, record["prompt"])
    where[request.key].add(record["split"])
  assert all(len(splits) == 1 for splits in where.values())


def test_held_out_documents_are_mostly_new(paths):
  documents = read(paths.pretraining)
  train = {r["text"] for r in documents if r["split"] == "train"}
  valid = [r["text"] for r in documents if r["split"] == "valid"]
  assert sum(text in train for text in valid) < 0.2 * len(valid)


def test_the_world_is_loaded_from_its_directory(paths, tmp_path):
  root = paths.world.rsplit("/", 1)[0]
  assert write.load_world(root) == WORLD
  with pytest.raises(UserError):
    write.load_world(tmp_path)
  (tmp_path / "world.json").write_text("[]")
  with pytest.raises(UserError) as error:
    write.load_world(tmp_path)
  assert (error.value.code, error.value.field) == ("not_a_world", "seed")


def test_the_loaded_world_scores_its_prompts(paths):
  for record in read(paths.prompts):
    reply = replies.best(requests.parse(WORLD, record["prompt"]))
    assert gold.label(record["prompt"], reply, world=WORLD).score == 1.0


def test_the_same_seed_writes_the_same_bytes(paths, tmp_path):
  again = write.write_world(tmp_path / "again", **SMALL)
  other = write.write_world(tmp_path / "other", **(SMALL | {"seed": 4}))
  for name in ("pretraining", "demonstrations", "prompts", "tasks"):
    bytes_ = [
      pathlib.Path(getattr(p, name)).read_bytes() for p in (paths, again, other)
    ]
    assert bytes_[0] == bytes_[1] != bytes_[2]


def test_a_full_size_world_is_written_in_seconds(tmp_path):
  start = time.process_time()
  files = write.write_world(tmp_path, pretraining_tokens=1_000_000)
  assert time.process_time() - start < 10
  words_ = sum(
    len(r["text"].split()) + 1
    for r in read(files.pretraining)
    if r["split"] == "train"
  )
  assert words_ == pytest.approx(1_000_000, rel=0.01)


def test_tasks_are_distinct_and_in_no_document(paths):
  items = read(paths.tasks)
  kinds = collections.Counter(item["kind"] for item in items)
  assert kinds == dict.fromkeys(tasks.KINDS, 30)
  assert len({item["prompt"] for item in items}) == len(items)
  web = "\n".join(r["text"] for r in read(paths.pretraining))
  for item in items:
    if "choices" in item:
      assert 0 <= item["answer"] < len(item["choices"])
      assert len(set(item["choices"])) == len(item["choices"])
    if item["kind"] in ("translation", "reading"):
      assert item["prompt"].split(" question :")[0] not in web
    if item["kind"] == "sentiment":
      assert item["prompt"] not in web


def test_answers_of_fact_items_are_true(paths):
  stated = {s for f in WORLD.facts if f.known for s in f.statements(f.true)}
  for item in read(paths.tasks):
    if item["kind"] == "facts":
      statement = f"{item['prompt']} {item['choices'][item['answer']]}"
      assert any(s.startswith(statement) for s in stated)
      for i, choice in enumerate(item["choices"]):
        other = f"{item['prompt']} {choice}"
        if i != item["answer"]:
          assert not any(s.startswith(other) for s in stated)


def test_metrics():
  assert tasks.exact_match(" la hundo vidas . la", "la hundo vidas") == 1.0
  assert tasks.exact_match("la hundo", "la hundo vidas") == 0.0
  assert tasks.first_sentence("ann U: who") == "ann"
  assert tasks.choice_accuracy([-2.0, -1.0, -3.0], 1) == 1.0
  assert tasks.choice_accuracy([-2.0, -1.0, -3.0], 0) == 0.0
