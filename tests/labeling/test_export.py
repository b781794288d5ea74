"""Exports beside what stages read, and beside direct computations."""

import json
import pathlib
import random

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import curation, reading
from instructgpt_jax.data.curation import splits
from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import (
  export,
  export_files,
  forms,
  schema,
  snapshot,
  store,
)
from instructgpt_jax.labeling.snapshot import Adjudication, Item, Label
from instructgpt_jax.training import inputs
from instructgpt_jax.training import rankings as rankings_lib

FORMATS = ["jsonl", "parquet"]


def ranking_item(number, *, count=3, **fields):
  return Item(
    id=number,
    task=fields.pop("task", "ranking"),
    payload={
      "turns": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": f"prompt {number}"},
      ],
      "completions": [f"answer {number} {i}" for i in range(count)],
      **fields.pop("payload", {}),
    },
    **fields,
  )


def ranking(ranks, **fields):
  return {
    "ranks": ranks,
    "overall": [4] * len(ranks),
    "flags": [dict.fromkeys(forms.FLAG_NAMES, False) for _ in ranks],
    "notes": "",
    "cannot_judge": None,
    **fields,
  }


def label(item, content, user=1, **fields):
  return Label(
    item=item,
    user_id=user,
    labeler=f"user {user}",
    content=content,
    instructions_version=2,
    seconds=30.0,
    submitted_at=5.0,
    **fields,
  )


def demonstration(kind="plain", **fields):
  return {
    "kind": kind,
    "intent": "to know",
    "prompt": "What is it?",
    "examples": [],
    "answer": "It is so.",
    **fields,
  }


def make(labels, adjudications=(), items=(), **settings):
  every = {label.item.id: label.item for label in labels}
  every.update((item.id, item) for item in items)
  return export.export_snapshot(
    snapshot.Snapshot(
      tuple(every.values()), tuple(labels), tuple(adjudications)
    ),
    export.ExportSettings(**settings),
  )


def written(made, tmp_path, file_format="jsonl"):
  paths = export_files.write_export(made, str(tmp_path / "out"), file_format)
  return {path.rpartition("/")[2]: path for path in paths}


@pytest.mark.parametrize("file_format", FORMATS)
def test_stages_read_the_rankings(tmp_path, file_format):
  item = ranking_item(7, payload={"origin": {"user_id": "u", "split": "valid"}})
  made = make([label(item, ranking([2, 1, 2]), user=4)])
  path = written(made, tmp_path, file_format)[f"rankings.{file_format}"]
  (record,), report = reading.read_rankings(path)
  assert [(t.role, t.text) for t in record.turns] == [
    ("system", "s"),
    ("user", "prompt 7"),
  ]
  assert record.completions == tuple(item.payload["completions"])
  assert record.ranks == (2, 1, 2)
  assert (record.labeler_id, record.user_id) == ("4", "u")
  assert record.split == "valid"
  assert not report.unused and not report.skipped and not report.notes


@pytest.mark.parametrize("file_format", FORMATS)
def test_stages_read_demonstrations_and_prompts(tmp_path, file_format):
  free = Item(id=1, task="demonstration", payload={"number": 0})
  prompted = Item(
    id=2,
    task="demonstration",
    payload={"turns": [{"role": "user", "content": "Human: no transcript"}]},
  )
  made = make(
    [
      label(free, demonstration()),
      label(prompted, demonstration("given", prompt="", answer="yes")),
    ]
  )
  paths = written(made, tmp_path, file_format)
  records, report = reading.read_demonstrations(
    paths[f"demonstrations.{file_format}"]
  )
  assert [(r.turns[-1].text, r.completion) for r in records] == [
    ("What is it?", "It is so."),
    ("Human: no transcript", "yes"),
  ]
  assert not report.unused
  prompts, report = reading.read_prompts(paths[f"prompts.{file_format}"])
  assert {p.turns[-1].text for p in prompts} == {r.turns[-1].text
                                                for r in records}  # fmt: skip
  assert not report.unused


def test_a_few_shot_prompt_gives_a_demonstration_for_each_example():
  free = Item(id=1, task="demonstration", payload={})
  content = demonstration(
    "few_shot",
    prompt="Translate.",
    answer="",
    examples=[["un", "one"], ["deux", "two"], ["trois", "three"]],
  )
  rows = make([label(free, content)]).files["demonstrations"]
  assert [row["completion"] for row in rows] == ["one", "two", "three"]
  assert rows[1]["prompt"][0]["content"] == (
    "Translate.\n\nQuery: un\nResponse: one\n\nQuery: trois\nResponse: three"
    "\n\nQuery: deux\nResponse:"
  )


def test_form_fields_are_with_each_ranking():
  item = ranking_item(1, kind="chat", payload={"sources": ["a", "b", "c"]})
  content = ranking([1, 2, 3], notes="good", overall=[7, 4, 1])
  content["flags"][2]["hallucination"] = True
  (row,) = make([label(item, content)]).files["rankings"]
  assert list(row) == [
    "prompt", "completions", "ranks", "labeler_id", "split", "labeling"
  ]  # fmt: skip
  assert row["labeling"] == {
    "item": 1,
    "kind": "chat",
    "instructions": 2,
    "submitted_at": 5.0,
    "revised_at": None,
    "seconds": 30.0,
    "adjudicated": False,
    "sources": ["a", "b", "c"],
    "notes": "good",
    "overall": [7, 4, 1],
    "flags": content["flags"],
  }


def test_labels_of_held_out_labelers_are_in_no_training_file(tmp_path):
  free = Item(id=9, task="demonstration", payload={})
  pair = ranking_item(8, count=2, task="comparison")
  items = [ranking_item(i) for i in range(3)]
  labels = [label(item, ranking([1, 2, 3]), user=1) for item in items]
  labels += [
    label(item, ranking([3, 2, 1], notes="SECRET"), user=2, held_out=True)
    for item in items
  ]
  labels += [
    label(
      free,
      demonstration(prompt="SECRET", answer="SECRET"),
      user=2,
      held_out=True,
    ),
    label(pair, {"confidence": 9, "notes": "SECRET"}, user=2, held_out=True),
  ]
  paths = written(make(labels), tmp_path)
  assert set(paths) == {
    "rankings.jsonl",
    "prompts.jsonl",
    "held_out_rankings.jsonl",
    "held_out_demonstrations.jsonl",
    "held_out_evaluation.jsonl",
    "export.json",
  }
  for name, path in paths.items():
    text = (tmp_path / "out" / name).read_text()
    assert ("SECRET" in text) == name.startswith("held_out_"), path
  for line in (tmp_path / "out/rankings.jsonl").read_text().splitlines():
    assert json.loads(line)["labeler_id"] == "1"


def test_comparisons_are_for_evaluation():
  item = ranking_item(
    1, count=2, task="comparison", payload={"sources": ["ppo", "sft"]}
  )
  made = make([label(item, {"confidence": 7, "notes": ""})])
  assert list(made.files) == ["evaluation"]
  (row,) = made.files["evaluation"]
  assert row["ranks"] == [2, 1]
  assert row["labeling"]["confidence"] == 7
  assert row["labeling"]["sources"] == ["ppo", "sft"]


def test_what_is_not_exported_is_counted():
  gold = ranking_item(3, gold={"ranks": [1, 2, 3]})
  screening = Item(
    id=4, task="screening", payload={"kind": "groups", "groups": ["x"]}
  )
  made = make(
    [
      label(ranking_item(1), ranking([1, 1, 1])),
      label(ranking_item(2), ranking([], cannot_judge="French")),
      label(gold, ranking([1, 2, 3])),
      label(screening, {"groups": [], "other": ""}),
    ]
  )
  assert made.left_out == {
    export.TIES: 1, export.UNABLE: 1, export.GOLD: 1, export.SCREENING: 1
  }  # fmt: skip
  assert list(made.files) == ["prompts"]
  assert [r["labeling"]["item"] for r in made.files["prompts"]] == [1, 2]


def test_a_final_label_replaces_training_labels_or_is_left_out():
  item, other = ranking_item(1), ranking_item(2)
  labels = [
    label(item, ranking([1, 2, 3]), user=1),
    label(item, ranking([3, 2, 1]), user=2),
    label(item, ranking([2, 1, 3]), user=3, held_out=True),
    label(other, ranking([1, 2, 3]), user=1),
  ]
  final = [
    Adjudication(item=item, user_id=9, content=ranking([1, 3, 2]), at=7.0)
  ]
  made = make(labels, final)
  rows = [(r["labeler_id"], r["ranks"]) for r in made.files["rankings"]]
  assert rows == [("1", [1, 2, 3]), ("9", [1, 3, 2])]
  assert [r["labeling"]["adjudicated"] for r in made.files["rankings"]] == [
    False,
    True,
  ]
  assert made.left_out == {export.REPLACED: 2}
  assert len(made.files["held_out_rankings"]) == 1

  without = make(labels, final, adjudicated="keep")
  assert [r["labeler_id"] for r in without.files["rankings"]] == ["1", "2", "1"]
  assert without.left_out == {export.NOT_USED: 1}


def test_a_final_label_of_held_out_labels_is_in_no_file():
  item = ranking_item(1)
  hal = label(item, ranking([2, 1, 3]), user=3, held_out=True)
  carl = label(item, ranking([3, 2, 1]), user=4, is_candidate=True)
  final = [
    Adjudication(item=item, user_id=9, content=ranking([1, 3, 2]), at=7.0)
  ]
  free = Item(id=2, task="demonstration", payload={})
  written = label(free, demonstration(), user=4, is_candidate=True)
  made = make([hal, carl, written], final)
  assert {name: len(rows) for name, rows in made.files.items()} == {
    "prompts": 1, "held_out_rankings": 1
  }  # fmt: skip
  assert made.left_out == {export.NOTHING_REPLACED: 1, export.CANDIDATE: 2}


def test_splits_are_those_of_curation():
  items = [
    ranking_item(i, payload={"origin": {"user_id": f"u{i % 20}"}})
    for i in range(100)
  ]
  made = make([label(item, ranking([1, 2, 3])) for item in items])
  data = configs.Data()
  counts = {"train": 0, "valid": 0, "test": 0}
  for row in made.files["rankings"]:
    fraction = splits.hash_fraction("user:" + row["user_id"])
    expected = "train"
    if fraction < data.valid_fraction + data.test_fraction:
      expected = "valid" if fraction < data.valid_fraction else "test"
    assert row["split"] == expected
    counts[expected] += 1
  assert counts["train"] > 50 and counts["valid"] + counts["test"] > 0


def test_a_user_is_in_one_split_of_all_files():
  item = ranking_item(1, payload={"origin": {"user_id": "u"}})
  prompted = Item(
    id=2,
    task="demonstration",
    payload={
      "turns": [{"role": "user", "content": "other"}],
      "origin": {"user_id": "u"},
    },
  )
  made = make(
    [
      label(item, ranking([1, 2, 3])),
      label(prompted, demonstration("given", prompt="")),
    ],
    valid_fraction=0.4,
    test_fraction=0.3,
  )
  assert set(made.files) == {"rankings", "demonstrations", "prompts"}
  names = {row["split"] for rows in made.files.values() for row in rows}
  assert len(names) == 1


def test_curation_drops_nothing_of_an_export(tmp_path):
  items = [
    ranking_item(i, payload={"origin": {"user_id": f"u{i % 20}"}})
    for i in range(60)
  ]
  labels = [
    label(item, ranking(ranks), user=user)
    for item in items
    for user, ranks in ((1, [1, 2, 3]), (2, [1, 1, 2]), (3, [3, 2, 1]))
  ]
  path = written(make(labels), tmp_path)["rankings.jsonl"]
  records, report = reading.read_rankings(path)
  parts, drops = curation.curate(records, configs.Data())
  assert not drops and not report.skipped
  assert sum(map(len, parts.values())) == 180
  for split, part in parts.items():
    assert {record.split for record in part} <= {split}


def test_five_fold_cross_validation_over_the_labelers_of_an_export(tmp_path):
  labels = [
    label(ranking_item(i), ranking([1, 2, 3]), user=1 + (i + k) % 10)
    for i in range(60)
    for k in range(3)
  ]
  path = written(make(labels, valid_fraction=0.5), tmp_path)["rankings.jsonl"]
  records, _ = reading.read_rankings(path)
  parts, _ = curation.curate(records, configs.Data())
  sources = inputs.Splits(parts["train"], parts["valid"], parts["test"])
  tested = []
  for fold in range(1, 6):
    section = configs.Reward(leave_out=f"{fold},{fold + 5}")
    selected = rankings_lib.select_rankings(sources, section, 0)
    others = {r.labeler_id for r in selected.train + selected.valid}
    assert len(others) == 8 and not others & {str(fold), str(fold + 5)}
    tested += selected.left_out
  # Each validation ranking is tested once, by a model without its labeler.
  assert tested and sorted(map(repr, tested)) == sorted(
    map(repr, parts["valid"])
  )


def test_personal_information_is_filtered_from_train():
  personal = "Write to jane.doe@gmail.com please."
  train = ranking_item(1, payload={"origin": {"split": "train"}})
  train.payload["completions"][1] = personal
  valid = ranking_item(2, payload={"origin": {"split": "valid"}})
  valid.payload["completions"][1] = personal
  noted = ranking_item(3, payload={"origin": {"split": "train"}})
  labels = [
    label(train, ranking([1, 2, 3])),
    label(valid, ranking([1, 2, 3])),
    label(noted, ranking([1, 2, 3], notes=personal)),
  ]
  made = make(labels)
  assert [r["labeling"]["item"] for r in made.files["rankings"]] == [2, 3]
  assert made.files["rankings"][1]["labeling"]["notes"] == ""
  assert made.left_out == {
    f"{export.PERSONAL}: e-mail address": 1,
    export.BLANKED: 1,
  }
  everything = make(labels, filter_personal=False)
  assert len(everything.files["rankings"]) == 3
  assert everything.files["rankings"][2]["labeling"]["notes"] == personal


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_same_labels_give_the_same_bytes(tmp_path, file_format):
  rng = random.Random(0)
  labels = [
    label(
      ranking_item(i, payload={"sources": ["a", "b", "ü"]}),
      ranking(rng.sample([1, 2, 3], 3), notes="ñ" * i),
      user=i % 3,
    )
    for i in range(50)
  ]
  made = make(labels)
  contents = []
  for name in "xy":
    paths = export_files.write_export(made, str(tmp_path / name), file_format)
    contents.append([pathlib.Path(path).read_bytes() for path in paths])
  assert contents[0] == contents[1]
  manifest = json.loads(contents[0][-1])
  entry = manifest["files"][f"rankings.{file_format}"]
  assert (entry["records"], entry["labelers"]) == (50, 3)
  assert manifest["labels"] == 50


def test_both_formats_have_the_same_records(tmp_path):
  free = Item(id=9, task="demonstration", payload={})
  labels = [
    label(ranking_item(1), ranking([1, 2, 3]), revised_at=9.0),
    label(ranking_item(2, count=2), ranking([2, 1])),
    label(free, demonstration()),
  ]
  made = make(labels)
  paths = written(made, tmp_path, "parquet")
  for name, rows in made.files.items():
    table = list(reading.read_table(paths[f"{name}.parquet"]))
    for (_, value), row in zip(table, rows, strict=True):
      extra = {k: v for k, v in value.pop("labeling").items() if v is not None}
      target = {k: v for k, v in row["labeling"].items() if v is not None}
      assert extra == target
      assert {k: v for k, v in value.items() if v is not None} == {
        k: v for k, v in row.items() if k != "labeling"
      }


def test_files_of_an_earlier_export_are_replaced(tmp_path):
  out = tmp_path / "out"
  written(make([label(ranking_item(1), ranking([1, 2, 3]))]), tmp_path)
  (out / "mine.txt").write_text("stays")
  free = Item(id=9, task="demonstration", payload={})
  written(make([label(free, demonstration())]), tmp_path, "parquet")
  assert {p.name for p in out.iterdir()} == {
    "demonstrations.parquet", "prompts.parquet", "export.json", "mine.txt"
  }  # fmt: skip


def test_a_directory_that_is_no_export_is_refused(tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  (out / "export.json").write_text("[]")
  made = make([label(ranking_item(1), ranking([1, 2, 3]))])
  with pytest.raises(UserError) as caught:
    export_files.write_export(made, str(out))
  assert caught.value.code == "not_an_export"
  assert [p.name for p in out.iterdir()] == ["export.json"]


def test_a_file_that_no_export_wrote_is_not_replaced(tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  (out / "prompts.jsonl").write_text("mine")
  made = make([label(ranking_item(1), ranking([1, 2, 3]))])
  with pytest.raises(UserError) as caught:
    export_files.write_export(made, str(out))
  assert caught.value.code == "output_exists"
  assert caught.value.file == str(out / "prompts.jsonl")
  assert [p.read_text() for p in out.iterdir()] == ["mine"]


def fill(opened):
  """Writes two labelers, a candidate, and labels in another order."""
  with opened.begin() as connection:
    insert = lambda table, **row: connection.execute(  # noqa: E731
      table.insert().values(**row)
    )
    for number, name, role in (
      (1, "b", "labeler"),
      (2, "A", "labeler"),
      (3, "c", "candidate"),
    ):
      insert(
        schema.users,
        id=number,
        name=name,
        name_key=name.lower(),
        role=role,
        held_out=number == 2,
        password="",
        active=True,
        created_at=0.0,
      )
    insert(schema.instructions, version=2, markdown="", created_at=0.0)
    for number in (1, 2):
      item = ranking_item(number)
      insert(
        schema.items,
        id=number,
        task="ranking",
        payload=item.payload,
        kind="chat",
        overlap=2,
        created_at=0.0,
      )
    rows = [(2, 2), (2, 1), (1, 1), (1, 3)]
    for number, (item, user) in enumerate(rows, 1):
      insert(
        schema.assignments,
        id=number,
        item_id=item,
        user_id=user,
        state="submitted",
        display_order=[0, 1, 2],
        locked_until=0.0,
        active_seconds=9.0,
        active_at=0.0,
        created_at=0.0,
      )
      insert(
        schema.labels,
        assignment_id=number,
        item_id=item,
        user_id=user,
        content=ranking([1, 2, 3]),
        instructions_version=2,
        revision=1,
        seconds=9.0,
        submitted_at=float(number),
      )
    insert(
      schema.adjudications,
      item_id=1,
      content=ranking([3, 2, 1]),
      user_id=1,
      at=8.0,
    )


def test_a_store_is_read_in_one_order(tmp_path):
  opened = store.open_store(tmp_path / "labels.db", create=True)
  fill(opened)
  with opened.read() as connection:
    read = snapshot.read_snapshot(connection)
  assert [(one.item.id, one.user_id) for one in read.labels] == [
    (1, 1),
    (1, 3),
    (2, 1),
    (2, 2),
  ]
  assert [a.item.id for a in read.adjudications] == [1]
  assert [r.labeler for r in snapshot.records_of(read)] == ["b", "b", "A"]
  assert read.labels[3].held_out and not read.labels[2].held_out
  made = export.export_snapshot(read)
  assert [r["labeler_id"] for r in made.files["rankings"]] == ["1", "1"]
  assert [r["labeler_id"] for r in made.files["held_out_rankings"]] == ["2"]
  assert made.labels == 4
  assert made.left_out == {export.CANDIDATE: 1, export.REPLACED: 1}
  opened.close()


def test_a_snapshot_neither_changes_nor_stops_writers(tmp_path):
  opened = store.open_store(tmp_path / "labels.db", create=True)
  fill(opened)
  with opened.read() as connection:
    before = snapshot.read_snapshot(connection)
    with opened.begin() as writer:
      writer.execute(schema.labels.delete())
    assert snapshot.read_snapshot(connection) == before
  with opened.read() as connection:
    assert snapshot.read_snapshot(connection).labels == ()
  opened.close()
