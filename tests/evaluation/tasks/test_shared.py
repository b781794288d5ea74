"""Real files of the tasks, where the checkout has them beside it."""

import pathlib

import pytest

from instructgpt_jax.evaluation.tasks import answers, registry

EVALS = pathlib.Path(__file__).parents[4] / "shared" / "data" / "evals"
pytestmark = pytest.mark.skipif(
  not EVALS.is_dir(), reason="../shared/data is not there"
)
# task: (file, items), counted by other means.
FILES = {
  "squad_v2": ("fixtures/squad2.json", 6),
  "drop": ("fixtures/drop.json", 19),
  "quac": ("fixtures/quac_sample.json", 12),
  "hellaswag": ("hellaswag/hellaswag.jsonl", 607),
  "rte": ("rte/train.tsv", 2280),
  "sst2": ("sst2/dev.tsv", 872),
  "wsc": ("wsc/WSCollection.xml", 172),
  "lambada": ("lambada/lambada_test.jsonl", 3101),
  "truthfulqa": ("truthfulqa/TruthfulQA.csv", 486),
  "winogender": ("winogender/all_sentences.tsv", 64),
  "crows_pairs": ("crows_pairs/crows_pairs_anonymized.csv", 909),
}


@pytest.mark.parametrize("name", FILES)
def test_items(name):
  file, count = FILES[name]
  questions = registry.load(name, str(EVALS / file), count=0, seed=0)
  items = questions.items
  assert len(items) == count
  # The small samples of QuAC and SQuAD have too few passages.
  if registry.TASKS[name].paper_shots and name not in ("quac", "squad_v2"):
    drawn = answers.draw_examples(items[0], items, 4, 0, name)
    assert len(drawn) == 4 and items[0] not in drawn


def test_half_of_sst2_is_positive():
  questions = registry.load(
    "sst2", str(EVALS / "sst2/dev.tsv"), count=0, seed=0
  )
  share = sum(item.right == (1,) for item in questions.items) / 872
  assert 0.45 < share < 0.55


def test_answers_of_wsc_are_nouns_of_the_passage():
  path = str(EVALS / "wsc/WSCollection.xml")
  items = registry.load("wsc", path, count=0, seed=0).items
  mentioned = sum(
    choice.strip().lower() in item.prompt.lower()
    for item in items
    for choice in item.choices
  )
  assert mentioned / (2 * len(items)) > 0.9
  assert {item.right for item in items} == {(0,), (1,)}
