"""Published pairs with labels, where the checkout has them beside it."""

import gzip
import json
import pathlib

import numpy as np
import pytest

from instructgpt_jax.evaluation import judge_pairs

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(
  not SHARED.is_dir(), reason="../shared/data is not there"
)
ALPACA = SHARED / "rankings/alpaca_eval"


def read(name, path):
  ((_, file),) = judge_pairs.read_labeled_pairs(f"{name}={path}").items()
  return file


def test_llmbar_is_a_directory_of_five_files():
  files = judge_pairs.read_labeled_pairs(f"llmbar={SHARED}/comparisons/llmbar")
  sizes = {name.split("/")[-2]: len(f.pairs) for name, f in files.items()}
  assert sizes == {
    "Natural": 58, "Manual": 31, "Neighbor": 85, "GPTInst": 54, "GPTOut": 33,
  }  # fmt: skip
  assert not any(file.notes for file in files.values())


def test_pandalm_has_three_votes_a_pair():
  path = SHARED / "comparisons/pandalm/testset-v1.json"
  records = json.loads(path.read_text())
  pairs, notes, _ = read("pandalm", path)
  assert len(pairs) == len(records) == 553 and notes == []
  for pair, record in zip(pairs, records, strict=True):
    votes = [record[f"annotator{i}"] for i in (1, 2, 3)]
    assert pair.labels == tuple({0: 0.5, 1: 1.0, 2: 0.0}[v] for v in votes)


@pytest.mark.parametrize("model", ["alpaca-7b", "gpt4", "text_davinci_001"])
def test_alpaca_eval_has_one_label_a_pair(model):
  path = ALPACA / model / "annotations.json.gz"
  records = json.loads(gzip.decompress(path.read_bytes()))
  usable = [
    r["preference"]
    for r in records
    if r["preference"] is not None and r["output_1"] != r["output_2"]
  ]
  pairs, *_ = read("alpaca_eval", path)
  assert len(pairs) == len(usable)
  wins = np.mean([pair.labels[0] == 1 for pair in pairs])
  assert wins == np.mean([value == 1 for value in usable])
  assert {pair.annotators for pair in pairs} == {("alpaca_eval_gpt4",)}
