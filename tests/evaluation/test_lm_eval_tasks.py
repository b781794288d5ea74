"""Tasks of published files are the harness's own, with other data."""

from __future__ import annotations

import json

import pytest

from instructgpt_jax.evaluation import lm_eval_tasks
from tests.interop import tiny

tiny.library("lm_eval")
tasks = tiny.library("lm_eval.tasks")

QUESTIONS = (
  "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,"
  "Source\n"
  'A,B,"Who, then?",Nobody,Nobody; No one,Me; You ;,x\n'
)


def publish(path):
  """Writes a small file of each task, as its publisher does."""
  hellaswag = {
    "ind": 1,
    "activity_label": "Diving",
    "ctx_a": "A man dives.",
    "ctx_b": "he",
    "endings": ["swims.", "flies [away].", "sleeps.", "eats."],
    "label": 2,
  }
  for name, text in {
    "hellaswag/hellaswag.jsonl": json.dumps(hellaswag) + "\n",
    "sst2/dev.tsv": "sentence\tlabel\na fine film\t1\ntoo long\t0\n",
    "lambada/lambada_test.jsonl": '{"text": "he went home"}\n',
    "truthfulqa/TruthfulQA.csv": QUESTIONS,
  }.items():
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(text)


def test_prompts_and_choices(tmp_path, monkeypatch):
  publish(tmp_path)
  out = str(tmp_path / "tasks")
  assert lm_eval_tasks.main([f"--data={tmp_path}", f"--out={out}"]) == 0
  manager = tasks.TaskManager(include_path=out)
  loaded = manager.load(list(lm_eval_tasks.SOURCES))["tasks"]
  asked = {}
  for name, task in loaded.items():
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests()
    asked[name] = [i.args for i in task.instances]
  assert asked["hellaswag"] == [
    ("Diving: A man dives. He", f" {ending}")
    for ending in ("swims.", "flies .", "sleeps.", "eats.")
  ]
  assert len(asked["sst2"]) == 4
  assert asked["sst2"][0][0].startswith("a fine film\nQuestion:")
  assert asked["lambada_openai"] == [("he went", " home")]
  texts = [text for _, text in asked["truthfulqa_mc1"]]
  assert texts == [" Nobody.", " Me.", " You."]


@pytest.mark.parametrize(
  "name, text, line, code",
  [
    ("sst2/dev.tsv", "good\t1\nbad\n", 2, "bad_task_item"),
    ("sst2/dev.tsv", "good\t2\n", 1, "bad_task_item"),
    ("hellaswag/hellaswag.jsonl", '{"ctx_a": ""}\n', 1, "bad_task_item"),
    ("lambada/lambada_test.jsonl", '{"text": "a"}\n[]\n', 2, "bad_task_item"),
    ("lambada/lambada_test.jsonl", "[]", None, "no_items"),
    ("truthfulqa/TruthfulQA.csv", QUESTIONS.replace("Nobody", ""), 2, None),
  ],
)
def test_bad_files_are_refused(tmp_path, name, text, line, code):
  publish(tmp_path)
  (tmp_path / name).write_text(text)
  with pytest.raises(lm_eval_tasks.UserError) as error:
    lm_eval_tasks.write_tasks(str(tmp_path), str(tmp_path / "out"))
  assert error.value.file == str(tmp_path / name)
  assert error.value.line == line
  assert code in (None, error.value.code)


def test_unknown_tasks_and_missing_files(tmp_path, capsys):
  flags = [f"--data={tmp_path}", f"--out={tmp_path / 'out'}"]
  assert lm_eval_tasks.main([*flags, "--tasks=mmlu"]) == 2
  assert "use hellaswag" in capsys.readouterr().err
  assert lm_eval_tasks.main([*flags, "--tasks=sst2"]) == 2
  assert "dev.tsv" in capsys.readouterr().err
  assert lm_eval_tasks.main([*flags, "--tasks=sst2", "--limit=-1"]) == 2
  assert "--limit" in capsys.readouterr().err
