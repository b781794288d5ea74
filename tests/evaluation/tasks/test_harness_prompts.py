"""Prompts of the evaluation harness, beside the harness's own files."""

import pathlib

import jinja2

from instructgpt_jax.evaluation.tasks import registry, truthfulqa
from tests.evaluation.tasks import fakes
from tests.interop import tiny

yaml = tiny.library("yaml")
lm_eval = tiny.library("lm_eval")
TASKS = pathlib.Path(lm_eval.__file__).parent / "tasks"


class Loader(yaml.SafeLoader):
  """Reads the harness's tasks, without their functions."""


Loader.add_multi_constructor("!function", lambda *_: None)


def doc_to_text(name, record):
  """Renders the prompt of a task of the harness."""
  settings = yaml.load((TASKS / name).read_text(), Loader)
  return jinja2.Template(settings["doc_to_text"]).render(record)


def ask(tmp_path, name, record):
  path = fakes.write(tmp_path / "x.jsonl", [record])
  questions = registry.load(name, path, count=0, seed=0, prompts="harness")
  (item,) = questions.items
  return questions.task, item


def test_sst2(tmp_path):
  record = {"sentence": "an old film ", "label": 1}
  _, item = ask(tmp_path, "sst2", record)
  assert item.prompt == doc_to_text("glue/sst2/default.yaml", record)


def test_rte(tmp_path):
  record = {"sentence1": "Ann left.", "sentence2": "Ann ran.", "label": 0}
  task, item = ask(tmp_path, "rte", record)
  assert item.prompt == doc_to_text("glue/rte/default.yaml", record)
  assert task.instructions == {"": ""}


def test_hellaswag(tmp_path):
  utils = tiny.library("lm_eval.tasks.hellaswag.utils")
  record = fakes.HELLASWAG | {
    "ctx_a": "[header] How to row [title] Sit down.",
    "endings": ["a [step] b", " c", "d", "e"],
  }
  _, item = ask(tmp_path, "hellaswag", record)

  class Docs:
    def map(self, function):
      return function(record)

  expected = utils.process_docs(Docs())
  assert item.prompt == expected["query"]
  assert item.choices == tuple(f" {text}" for text in expected["choices"])
  assert item.right == (expected["gold"],)


def test_lambada(tmp_path):
  record = {"text": "He met his old friend"}
  _, item = ask(tmp_path, "lambada", record)
  assert item.prompt == doc_to_text("lambada/lambada_openai.yaml", record)


def test_truthfulqa():
  record = {"question": "Is ice hot?"}
  expected = doc_to_text("truthfulqa/truthfulqa_mc1.yaml", record)
  prompt = truthfulqa.QA + "Q: Is ice hot?\nA:"
  # YAML's folded lines leave blanks in the harness's prompt.
  assert prompt.split() == expected.split()


def test_wsc(tmp_path):
  utils = tiny.library("lm_eval.tasks.super_glue.wsc.preprocess_wsc")
  record = fakes.WSC | {"text": "Ann told Bea that she won."}
  _, item = ask(tmp_path, "wsc", record)
  record = {**record, **fakes.WSC["target"]}
  assert item.prompt == utils.default_doc_to_text(record)
  assert item.choices == (" no", " yes")
