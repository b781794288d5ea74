"""Projects and their files of items, and stores that are brought up to them."""

import json
import pathlib

import pytest
import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import (
  assignment,
  item_files,
  project,
  schema,
  store,
)

ANSWERS = [
  {
    "prompt": "Name a river.",
    "completions": ["The Loire.", "Paris.", "The Rhône."],
    "sources": ["sft", "base", "ppo"],
    "kind": "open qa",
    "user_id": "u7",
    "split": "valid",
  },
  {
    "prompt": [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": "Hi"},
    ],
    "completions": ["Hello.", "Hi!"],
  },
]


def write(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


def make(tmp_path, items=None, answers=ANSWERS, **fields):
  write(tmp_path / "answers.jsonl", answers)
  value = {
    "items": [{"task": "ranking", "file": "answers.jsonl"}]
    if items is None
    else items,
    **fields,
  }
  path = tmp_path / "PROJECT.json"
  path.write_text(json.dumps(value))
  return str(path)


def read(tmp_path, *args, **fields):
  made = project.read_project(make(tmp_path, *args, **fields))
  return project.read_items(made)


def error_of(function, *args, **fields):
  with pytest.raises(UserError) as caught:
    function(*args, **fields)
  assert caught.value.fix
  return caught.value


def test_a_file_of_answers_becomes_items(tmp_path):
  items, remarks = read(tmp_path, overlap=3)
  assert remarks == []
  assert items[0] == (
    "ranking",
    {
      "turns": [{"role": "user", "content": "Name a river."}],
      "completions": ["The Loire.", "Paris.", "The Rhône."],
      "sources": ["sft", "base", "ppo"],
      "origin": {"user_id": "u7", "split": "valid"},
    },
    "open qa",
    3,
    None,
  )
  assert items[1].payload["turns"] == ANSWERS[1]["prompt"]
  assert "origin" not in items[1].payload


def test_pages_do_not_show_what_identifies_models_or_users(tmp_path):
  items, _ = read(tmp_path)
  for item in items:
    shown = {
      k: v for k, v in item.payload.items() if k not in assignment.HIDDEN_KEYS
    }
    text = json.dumps(shown)
    assert "sft" not in text and "u7" not in text
    assert set(shown) == {"turns", "completions"}


def test_settings_have_defaults_and_ranges(tmp_path):
  made = project.read_project(
    make(tmp_path, title=" Mine ", lock_seconds=600, ranking_cut=0.8)
  )
  assert made.settings == project.Settings(
    title="Mine", lock_seconds=600.0, ranking_cut=0.8
  )
  assert made.settings.rules().lock_seconds == 600
  assert made.settings.cuts().ranking == 0.8
  assert made.instructions == ""


@pytest.mark.parametrize(
  "fields, field, code",
  [
    (dict(overlap=0), "overlap", "bad_project"),
    (dict(overlap=1.5), "overlap", "bad_project"),
    (dict(overlap=True), "overlap", "bad_project"),
    (dict(lock_seconds="600"), "lock_seconds", "bad_project"),
    (dict(gold_share=1.01), "gold_share", "bad_project"),
    (dict(title=""), "title", "bad_project"),
    (dict(titel="x"), "titel", "bad_project"),
    (dict(title="a\0b"), "title", "bad_title"),
    (dict(title="a\u202eb"), "title", "bad_title"),
    (dict(title="a\ud800"), "title", "bad_title"),
    (dict(instructions=3), "instructions", "bad_project"),
    (dict(items=[]), "items", "no_items"),
    (dict(items={}), "items", "no_items"),
    (dict(items=["ranking"]), "items[0]", "bad_project"),
    (dict(items=[{"task": "rank"}]), "items[0].task", "bad_project"),
    (dict(items=[{"task": []}]), "items[0].task", "bad_project"),
    (dict(items=[{"task": "ranking"}]), "items[0].file", "no_items"),
    (
      dict(items=[{"task": "ranking", "count": 3}]),
      "items[0].count",
      "bad_project",
    ),
    (
      dict(items=[{"task": "demonstration", "count": 0}]),
      "items[0].count",
      "bad_project",
    ),
    (
      dict(items=[{"task": "ranking", "file": "a", "overlap": "2"}]),
      "items[0].overlap",
      "bad_project",
    ),
    (
      dict(items=[{"task": "ranking", "path": "a"}]),
      "items[0].path",
      "bad_project",
    ),
  ],
)
def test_wrong_fields_are_named(tmp_path, fields, field, code):
  path = make(tmp_path, **fields)
  error = error_of(project.read_project, path)
  assert (error.file, error.field, error.code) == (path, field, code)


@pytest.mark.parametrize(
  "text, code",
  [
    ("[]", "bad_project"),
    ("{", "bad_json"),
    (None, "no_file"),
    ('{"overlap": 1, "overlap": 2}', "bad_project"),
    ('{"items": [{"task": "ranking", "task": "ranking"}]}', "bad_project"),
  ],
)
def test_a_file_that_is_no_project(tmp_path, text, code):
  path = tmp_path / "PROJECT.json"
  if text is not None:
    path.write_text(text)
  assert error_of(project.read_project, str(path)).code == code


def test_instructions_are_read_beside_the_project(tmp_path):
  (tmp_path / "guide.md").write_text("# Rank\n")
  made = project.read_project(make(tmp_path, instructions="guide.md"))
  assert made.instructions == "# Rank\n"
  path = make(tmp_path, instructions="missing.md")
  assert error_of(project.read_project, path).code == "no_file"


def test_files_of_windows_are_read(tmp_path):
  path = make(tmp_path, instructions="guide.md", title="Rivers 😀")
  for name, text in (
    ("PROJECT.json", pathlib.Path(path).read_text()),
    ("guide.md", "# Rank\n\nWell.\n"),
  ):
    crlf = text.replace("\n", "\r\n").encode()
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + crlf)
  made = project.read_project(path)
  assert made.settings.title == "Rivers 😀"
  assert made.instructions == "# Rank\n\nWell.\n"
  (tmp_path / "guide.md").write_bytes(b"a\0b")
  assert error_of(project.read_project, path).code == "bad_text"


def test_repeated_answers_are_left_out_and_counted(tmp_path):
  answers = [
    {
      "prompt": "p",
      "completions": ["a", "b", "a ", "c"],
      "sources": ["w", "x", "y", "z"],
    }
  ]
  (item,), remarks = read(tmp_path, answers=answers)
  assert item.payload["completions"] == ["a", "b", "c"]
  assert item.payload["sources"] == ["w", "x", "z"]
  assert len(remarks) == 1 and " 1 repeated answers" in remarks[0]


@pytest.mark.parametrize(
  "record, field, code",
  [
    ({"prompt": "p", "completions": ["a", "a", " a"]}, "completions",
     "equal_answers"),
    ({"prompt": "p", "completions": ["a"]}, "completions", "completion_count"),
    ({"prompt": "p", "completions": []}, "completions", "completion_count"),
    ({"prompt": "p", "completions": [str(i) for i in range(17)]},
     "completions", "completion_count"),
    ({"prompt": " ", "completions": ["a", "b"]}, "prompt", "empty_text"),
    ({"prompt": "p", "completions": ["a", " "]}, "completions[1]",
     "empty_text"),
    ({"prompt": "p", "completions": ["a", 3]}, "completions[1]", "wrong_type"),
    ({"prompt": "p", "completions": ["a", "b" * 100_001]}, "completions[1]",
     "text_too_long"),
    ({"prompt": "p", "completions": ["a", "b"], "sources": ["x"]}, "sources",
     "value_count"),
    ({"prompt": "p", "completions": ["a", "b"], "sources": ["x", 1]},
     "sources", "wrong_type"),
    ({"prompt": "p", "completions": ["a", "b"], "gold": [1, 0]}, "gold",
     "bad_rank"),
    ({"prompt": "p", "completions": ["a", "b"], "kind": 3}, "kind",
     "wrong_type"),
    ({"prompt": "p", "completions": ["a", "b"], "split": "dev?"}, "split",
     "unknown_split"),
  ],
)  # fmt: skip
def test_records_that_cannot_be_labeled_are_named(
  tmp_path, record, field, code
):
  error = error_of(read, tmp_path, answers=[ANSWERS[0], record])
  assert (error.line, error.field) == (2, field)
  assert error.code == code


def test_a_file_without_records(tmp_path):
  path = make(tmp_path)
  (tmp_path / "answers.jsonl").write_text("")
  made = project.read_project(path)
  assert error_of(project.read_items, made).code == "empty_file"


@pytest.mark.parametrize("task", schema.TASKS)
def test_a_list_without_records(tmp_path, task):
  (tmp_path / "list.json").write_text("[]")
  error = error_of(read, tmp_path, [{"task": task, "file": "list.json"}])
  assert error.file == str(tmp_path / "list.json")


def test_a_comparison_has_two_answers(tmp_path):
  items = [{"task": "comparison", "file": "answers.jsonl"}]
  error = error_of(read, tmp_path, items)
  assert (error.line, error.code) == (1, "completion_count")
  (item,), _ = read(tmp_path, items, answers=ANSWERS[1:])
  assert item.task == "comparison"


def test_ranks_of_a_file_are_not_used_but_counted(tmp_path):
  answers = [{**ANSWERS[0], "ranks": [1, 1, 1]}]
  (item,), remarks = read(tmp_path, answers=answers)
  assert item.gold is None
  assert any("'ranks' is not used" in r for r in remarks)


def test_gold_items_are_for_all_labelers(tmp_path):
  answers = [
    {"prompt": "p", "completions": ["a", "b", "a"], "gold": [3, 1, 3]},
  ]
  (item,), remarks = read(tmp_path, answers=answers)
  assert item.gold == {"ranks": [2, 1]}
  assert item.overlap is None
  assert any("gold_share" in remark for remark in remarks)
  _, remarks = read(tmp_path, answers=answers, gold_share=0.1)
  assert not any("gold_share" in remark for remark in remarks)


def test_other_formats_of_rankings_can_be_labeled_again(tmp_path):
  answers = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
  (item,), _ = read(tmp_path, answers=answers)
  assert sorted(item.payload["completions"]) == ["a", "b"]


def test_pairs_of_equal_replies_are_counted_or_refused(tmp_path):
  equal = {"prompt": "p", "chosen": "a", "rejected": "a"}
  other = {"prompt": "q", "chosen": "a", "rejected": "b"}
  (item,), remarks = read(tmp_path, answers=[equal, other])
  assert item.payload["turns"][0]["content"] == "q"
  assert len(remarks) == 1
  assert error_of(read, tmp_path, answers=[equal]).code == "no_items"


def test_given_prompts_and_prompts_that_labelers_write(tmp_path):
  write(
    tmp_path / "prompts.jsonl",
    [
      {"prompt": "one", "family": "chat", "user_id": "u"},
      {"prompt": "two"},
      {"prompt": "one", "family": "chat", "user_id": "u"},
    ],
  )
  items, remarks = read(
    tmp_path,
    [
      {"task": "demonstration", "file": "prompts.jsonl", "overlap": 2},
      {"task": "demonstration", "count": 2},
      {"task": "demonstration", "count": 1},
    ],
  )
  assert [i.payload.get("turns", [{}])[0].get("content") for i in items] == [
    "one",
    "two",
    None,
    None,
    None,
  ]
  assert items[0].kind == "chat" and items[0].overlap == 2
  assert items[0].payload["origin"] == {"user_id": "u"}
  assert len({i.key for i in items}) == 5
  assert len(remarks) == 1 and "1 repeated prompts" in remarks[0]


def test_use_cases_for_which_labelers_write_prompts(tmp_path):
  path = tmp_path / "cases.jsonl"
  entries = [{"task": "demonstration", "file": "cases.jsonl"}]
  cases = [{"use_case": "Plan a trip", "kind": "brainstorming"},
           {"use_case": "Rewrite a letter"}]  # fmt: skip
  write(path, cases)
  items, _ = read(tmp_path, entries)
  assert [i.payload for i in items] == [{"use_case": c["use_case"]}
                                        for c in cases]  # fmt: skip
  assert [i.kind for i in items] == ["brainstorming", ""]
  for record, field, code in (
    ({"use_case": " "}, "use_case", "empty_text"),
    ({"use_case": "x", "prompt": "y"}, "prompt", "unknown_field"),
    ({"prompt": "y"}, "use_case", "missing_field"),
  ):
    write(path, [*cases, record])
    error = error_of(read, tmp_path, entries)
    assert (error.line, error.field, error.code) == (3, field, code)


SCREENING = [
  {"kind": "sensitive", "texts": ["x", "y"], "gold": [True, False]},
  {"kind": "ranking", "prompt": "p", "completions": ["a", "b"], "gold": [2, 1]},
  {"kind": "demonstration", "prompt": "p"},
  {"kind": "demonstration"},
  {"kind": "groups"},
]


def test_screening_items(tmp_path):
  write(tmp_path / "screening.jsonl", SCREENING)
  items, _ = read(tmp_path, [{"task": "screening", "file": "screening.jsonl"}])
  assert [i.payload["kind"] for i in items] == [s["kind"] for s in SCREENING]
  assert all(i.overlap is None for i in items)
  assert items[0].gold == {"sensitive": [True, False]}
  assert items[1].gold == {"ranks": [2, 1]}
  assert [i.gold for i in items[2:]] == [None] * 3
  assert items[1].payload["completions"] == ["a", "b"]


@pytest.mark.parametrize(
  "record, field, code",
  [
    ({"kind": "speech"}, "kind", "screening_kind"),
    (["sensitive"], "kind", "screening_kind"),
    ({"kind": "sensitive"}, "texts", "missing_field"),
    ({"kind": "sensitive", "texts": []}, "texts", "wrong_type"),
    ({"kind": "sensitive", "texts": ["a", "a"]}, "texts", "equal_answers"),
    ({"kind": "sensitive", "texts": ["a"], "gold": [1]}, "gold", "wrong_type"),
    ({"kind": "ranking", "completions": ["a", "b"]}, "prompt", "missing_field"),
    ({"kind": "groups", "gold": []}, "gold", "unknown_field"),
  ],
)
def test_wrong_screening_items_are_named(tmp_path, record, field, code):
  write(tmp_path / "screening.jsonl", [SCREENING[0], record])
  error = error_of(
    read, tmp_path, [{"task": "screening", "file": "screening.jsonl"}]
  )
  assert (error.line, error.field, error.code) == (2, field, code)


def update(opened, path, now=1.0):
  made = project.read_project(path)
  items, _ = project.read_items(made)
  return project.update_store(opened, made, items, now)


@pytest.fixture
def opened(tmp_path):
  opened = store.open_store(tmp_path / "labels.db", create=True)
  yield opened
  opened.close()


def stored(opened):
  with opened.read() as connection:
    return connection.execute(
      sa.select(schema.items).order_by(schema.items.c.id)
    ).all()


def test_a_store_is_brought_up_to_its_project(tmp_path, opened):
  (tmp_path / "guide.md").write_text("one")
  path = make(tmp_path, instructions="guide.md")
  assert update(opened, path) == (2, 2, 0, 0, 1, True)
  assert update(opened, path) == (0, 2, 0, 0, 1, False)
  rows = stored(opened)
  assert [row.payload["completions"] for row in rows] == [
    a["completions"] for a in ANSWERS
  ]

  # New instructions, one more item, one that is gone, more labelers.
  (tmp_path / "guide.md").write_text("two")
  more = {"prompt": "new", "completions": ["a", "b"]}
  path = make(
    tmp_path,
    answers=[ANSWERS[0], more],
    instructions="guide.md",
    overlap=4,
    title="T",
  )
  assert update(opened, path, 2.0) == (1, 2, 1, 1, 2, True)
  assert [row.overlap for row in stored(opened)] == [4, 1, 4]
  assert [row.created_at for row in stored(opened)] == [1.0, 1.0, 2.0]
  assert project.read_settings(opened).title == "T"
  assert project.read_instructions(opened) == (2, "two")


def test_other_sources_of_the_same_answers_are_the_same_item(tmp_path, opened):
  update(opened, make(tmp_path))
  changed = [{**ANSWERS[0], "sources": ["x", "y", "z"], "user_id": "other"}]
  assert update(opened, make(tmp_path, answers=changed)).added == 0


def test_what_a_file_says_about_an_item_can_change(tmp_path, opened):
  plain = {"prompt": "p", "completions": ["x", "y"], "kind": "chat"}
  gold = {**plain, "gold": [2, 1], "kind": "qa", "sources": ["m", "n"]}
  for answer, ranks in (
    (plain, None),
    (gold, {"ranks": [2, 1]}),
    (plain, None),
  ):
    path = make(tmp_path, answers=[answer])
    update(opened, path)
    assert update(opened, path).changed == 0
    (row,) = stored(opened)
    assert (row.gold, row.kind) == (ranks, answer["kind"])
    assert row.overlap == (None if ranks else 1)
    assert row.payload.get("sources") == answer.get("sources")


def test_a_restart_does_not_undo_instructions_of_the_page(tmp_path, opened):
  (tmp_path / "guide.md").write_text("one")
  path = make(tmp_path, instructions="guide.md")
  update(opened, path)
  assert project.write_instructions(opened, "of the page", 2.0) == 2
  assert update(opened, path)[-2:] == (2, False)
  assert project.read_instructions(opened) == (2, "of the page")
  (tmp_path / "guide.md").write_text("new")
  assert update(opened, path)[-2:] == (3, True)


def test_a_store_without_a_project(opened):
  assert error_of(project.read_settings, opened).code == "no_project"
  assert project.read_instructions(opened) == (0, "")


def test_instructions_of_the_owner_get_versions(opened):
  assert project.write_instructions(opened, "a", 1.0) == 1
  assert project.write_instructions(opened, "a", 2.0) == 1
  assert project.write_instructions(opened, "b", 3.0) == 2


def test_a_project_that_is_written_is_read_again(tmp_path):
  settings = project.Settings(title="T", overlap=3, sensitive_cut=0.5)
  (tmp_path / "guide.md").write_text("x")
  write(tmp_path / "answers.jsonl", ANSWERS)
  value = project.as_json(
    settings, [{"task": "ranking", "file": "answers.jsonl"}], "guide.md"
  )
  assert set(value) == {
    "title", "overlap", "sensitive_cut", "instructions", "items"
  }  # fmt: skip
  path = tmp_path / "PROJECT.json"
  path.write_text(json.dumps(value))
  made = project.read_project(str(path))
  assert (made.settings, made.instructions) == (settings, "x")


def test_keys_do_not_depend_on_the_order_of_fields():
  a = item_files.key_of("ranking", {"turns": [1], "completions": [2]})
  b = item_files.key_of("ranking", {"completions": [2], "turns": [1]})
  c = item_files.key_of("comparison", {"completions": [2], "turns": [1]})
  assert a == b != c
