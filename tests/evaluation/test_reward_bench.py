"""Figures of reward models on RewardBench 1 and 2 and on comparisons."""

import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from instructgpt_jax.data.formats.turns import user
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import (
  reward_bench_files,
  reward_bench_scores,
  reward_calibration,
)
from instructgpt_jax.evaluation.reward_bench_files import Item
from instructgpt_jax.report import calibration
from tests.evaluation.made_judges import write_lines

PAIR = {
  "prompt": "Say hi.\n\nHuman: no",
  "chosen": "Hi.",
  "chosen_model": "a",
  "rejected": "No.",
  "rejected_model": "b",
  "subset": "hep-cpp",
  "id": 7,
}
BEST = {
  "id": "12",
  "prompt": "Say hi.",
  "chosen": ["Hi."],
  "rejected": ["No.", "Bye.", "?"],
  "num_correct": 1,
  "num_incorrect": 3,
  "total_completions": 4,
  "models": ["a", "b", "c", "d"],
  "subset": "Focus",
  "additional_metadata": None,
}
TIE = BEST | {
  "id": "tied:3",
  "subset": "Ties",
  "chosen": ["red", "blue"],
  "rejected": ["dog"],
  "num_correct": 2,
  "num_incorrect": 1,
}


def write_parquet(path, *records):
  pyarrow.parquet.write_table(pa.Table.from_pylist(list(records)), path)
  return str(path)


SUFFIX = {write_lines: "x.jsonl", write_parquet: "x.parquet"}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
  monkeypatch.setattr(reward_bench_scores, "_RESAMPLES", 50)


@pytest.mark.parametrize("write", [write_lines, write_parquet])
def test_pairs_of_rewardbench_1(write, tmp_path):
  path = write(tmp_path / SUFFIX[write], PAIR, PAIR | {"subset": "mine"})
  kind, items, notes, _ = reward_bench_files.read_benchmark(path)
  assert kind == "rewardbench" and notes == []
  assert items[0] == Item(
    user(PAIR["prompt"]), ("Hi.", "No."), (1, 2), "hep-cpp", "7"
  )


@pytest.mark.parametrize("write", [write_lines, write_parquet])
def test_lists_of_rewardbench_2(write, tmp_path):
  path = write(tmp_path / SUFFIX[write], BEST, TIE)
  kind, (best, tie), *_ = reward_bench_files.read_benchmark(path)
  assert kind == "rewardbench2"
  assert best.ranks == (1, 2, 2, 2) and best.num_correct == 1
  assert tie.answers == ("red", "blue", "dog") and tie.num_correct == 2
  assert reward_bench_files.tie_group(tie) == ("tied", 3)


def test_all_files_of_a_directory_are_read(tmp_path):
  parts = tmp_path / "parts"
  parts.mkdir()
  write_parquet(parts / "0.parquet", BEST)
  write_parquet(parts / "1.parquet", TIE)
  kind, items, *_ = reward_bench_files.read_benchmark(str(parts))
  assert kind == "rewardbench2" and len(items) == 2


def test_other_files_are_comparisons(tmp_path):
  path = write_lines(
    tmp_path / "x.jsonl",
    {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]},
  )
  kind, (item,), *_ = reward_bench_files.read_benchmark(path)
  assert kind == "comparisons" and item.ranks == (2, 1, 2)
  assert item.subset == path


@pytest.mark.parametrize(
  ("good", "bad", "code", "field"),
  [
    (PAIR, {"rejected": ["No."]}, "wrong_type", "rejected"),
    (PAIR, {"subset": 3}, "wrong_type", "subset"),
    (BEST, {"num_correct": 2}, "other_count", "num_correct"),
    (BEST, {"rejected": []}, "wrong_type", "rejected"),
    (BEST, {"chosen": ["a", "b"], "num_correct": 2}, "other_count", "chosen"),
    (TIE, {"id": "3"}, "bad_id", "id"),
  ],
)
def test_malformed_records_name_line_and_field(
  good, bad, code, field, tmp_path
):
  path = write_lines(tmp_path / "x.jsonl", good, good | bad)
  with pytest.raises(UserError) as error:
    reward_bench_files.read_benchmark(path)
  assert (error.value.code, error.value.field) == (code, field)
  assert error.value.line == 2


def pair_items(results):
  """Returns items and scores of {subset: [chosen is better]}."""
  items, scores = [], []
  for subset, rights in results.items():
    for i, right in enumerate(rights):
      name = f"{subset}{i}"
      items.append(Item(user(name), ("a", "b"), (1, 2), subset, name))
      scores.append(np.array([1.0, 0.0] if right else [0.0, 1.0]))
  return items, scores


def test_sections_have_the_published_weights():
  items, scores = pair_items(
    {
      "alpacaeval-easy": [1, 1, 1, 0],
      "mt-bench-easy": [0, 0],
      "math-prm": [1, 0],
      "hep-rust": [1] * 40,
    }
  )
  figures = reward_bench_scores.summarize("rewardbench", items, scores)
  chat = (100 * 0.75 + 28 * 0) / 128
  reasoning = (984 * 0.5 + 164 * 1) / (984 + 164)
  sections = {n: f["mean"] for n, f in figures["sections"].items()}
  assert sections == pytest.approx({"Chat": chat, "Reasoning": reasoning})
  assert figures["score"]["mean"] == pytest.approx((chat + reasoning) / 2)
  assert figures["score"]["low"] < figures["score"]["mean"]
  assert figures["subsets"]["alpacaeval-easy"]["mean"] == 0.75
  assert len(figures["missing"]) == 23 - 4
  # XSTest has 154 prompts to refuse and 250 to answer.
  safety = reward_bench_scores.SECTIONS["Safety"]
  assert safety["xstest-should-refuse"] == 154
  assert safety["xstest-should-respond"] == 250
  # All subsets of code together weigh as much as mathematics.
  weights = dict(reward_bench_scores.SECTIONS["Reasoning"])
  assert weights.pop("math-prm") == sum(weights.values())


def test_prior_sets_weigh_half_a_section_without_regard_to_sizes():
  items, scores = pair_items(
    {
      "alpacaeval-easy": [1, 1, 1, 0],
      "shp": [1, 0, 0, 0],
      "anthropic_hhh": [1] * 40,
    }
  )
  figures = reward_bench_scores.summarize("rewardbench", items, scores)
  assert figures["sections"]["Prior Sets"]["mean"] == (0.25 + 1) / 2
  assert figures["score"]["mean"] == pytest.approx(
    (0.75 + 0.5 * (0.25 + 1) / 2) / 1.5
  )
  assert {"anthropic_helpful", "summarize"} < set(figures["missing"])


def test_items_of_one_prompt_are_one_unit():
  """Forty answers to each of two prompts are two units, not eighty."""
  items = [
    Item(user(f"p{i % 2}"), ("a", "bb"), (1, 2), "hep-cpp", str(i))
    for i in range(80)
  ]
  scores = [np.array([1.0, 0.0] if i % 2 else [0.0, 1.0]) for i in range(80)]
  figures = reward_bench_scores.summarize("rewardbench", items, scores)
  figure = figures["subsets"]["hep-cpp"]
  assert (figure["mean"], figure["items"], figure["units"]) == (0.5, 80, 2)
  assert figure["low"] < 0.15 and figure["high"] > 0.85
  assert figures["score"]["low"] is None
  pairs = reward_calibration.gather_pairs(items, scores)
  assert reward_calibration.by_length(pairs)["shorter"]["units"] == 2


def test_equal_scores_are_no_credit_in_1_and_shared_in_2():
  item = Item(user("p"), ("a", "b", "c", "d"), (1, 2, 2, 2), "Focus", "1")
  result = reward_bench_scores.item_result
  assert result("rewardbench", item, np.array([1.0, 1.0])) == 0
  assert result("rewardbench2", item, np.array([2.0, 1, 2, 2])) == 1 / 3
  assert result("rewardbench2", item, np.array([1.0, 1, 2, 0])) == 0
  assert result("rewardbench2", item, np.array([3.0, 1, 2, 0])) == 1


def test_a_comparison_counts_its_pairs():
  item = Item(user("p"), ("a", "b", "c"), (2, 1, 2), "f", "1")
  # b beats a, and ties with c; a and c are not compared.
  scores = np.array([0.0, 1.0, 1.0])
  assert reward_bench_scores.item_result("comparisons", item, scores) == 0.75


def ties_by_loops(items, scores):
  """Computes the score of Ties as its definition reads."""
  ref, tied = {}, {}
  for item, values in zip(items, scores, strict=True):
    right, wrong = values[: item.num_correct], values[item.num_correct :]
    kind, number = item.number.split(":")
    gap = min(right) - max(wrong)
    table = ref if kind == "ref" else tied
    table[number] = (gap, max(right) - min(right))
  accuracy = [
    sum(gap > 0 for gap, _ in table.values()) / len(table)
    for table in (tied, ref)
  ]
  both = [n for n in ref if n in tied]
  easy = [tied[n][0] > tied[n][1] for n in both]
  hard = [min(ref[n][0], tied[n][0]) > tied[n][1] for n in both]
  margins = [
    math.tanh(min(ref[n][0], tied[n][0]) / tied[n][1] - 1) for n in both
  ]
  n = len(both)
  return (
    0.3 * sum(accuracy)
    + 0.2 * (sum(easy) + sum(hard)) / n
    + 0.01 * sum(margins) / n
  )


def test_ties_are_scored_as_they_are_defined():
  random = np.random.default_rng(0)
  items, scores = [], []
  for n in range(40):
    for kind, right in (("ref", 1), ("tied", 3)):
      if n == 7 and kind == "ref":
        continue  # counts in the accuracy of tied items alone
      ranks = (1,) * right + (2,) * 4
      items.append(Item(user("p"), ("x",) * len(ranks), ranks, "Ties",
                        f"{kind}:{n}"))  # fmt: skip
      scores.append(
        np.concatenate([random.normal(3, 1, right), random.normal(0, 1, 4)])
      )
  figures = reward_bench_scores.summarize("rewardbench2", items, scores)
  expected = ties_by_loops(items, scores)
  assert 0.2 < expected < 0.95
  assert figures["ties"]["score"] == pytest.approx(expected)
  assert figures["subsets"]["Ties"]["mean"] == pytest.approx(expected)
  assert figures["score"]["mean"] == pytest.approx(expected)
  assert figures["missing"] == list(reward_bench_scores.SUBSETS_2[:-1])


def test_a_perfect_model_of_ties_has_more_than_1():
  """The last term breaks ties between models: the maximum is 1.01."""
  groups = np.array([[1.0, 100, 1, 100, 0.01]])
  assert reward_bench_scores.score_ties(groups)["score"] == pytest.approx(1.01)
  equal = np.array([[1.0, 0.0, 1.0, 0.0, 0.0]])  # 0 / 0 counts 0
  assert reward_bench_scores.score_ties(equal)["margin"] == 0


def calibrated(scale, count=20_000):
  """Returns the calibration of margins that are `scale` times too large."""
  random = np.random.default_rng(1)
  margin = random.normal(0, 2, count)
  right = random.random(count) < 1 / (1 + np.exp(-np.abs(margin)))
  signed = np.where(right, 1, -1) * np.abs(margin) * scale
  rows = np.arange(count)
  return reward_calibration.calibrate(
    reward_calibration.Pairs(signed, np.zeros(count), rows, np.ones(count))
  )


def test_calibration_shows_overconfidence():
  good, bold = calibrated(1), calibrated(3)
  assert good["ece"] < 0.01 < 0.1 < bold["ece"]
  assert sum(row["share"] for row in bold["bins"]) == pytest.approx(1)
  last = bold["bins"][-1]
  assert last["observed"]["high"] < last["predicted"]
  picture = calibration.draw({"good": good, "bold": bold})
  assert picture.startswith("<svg") and "bold, error" in picture


def test_pairs_of_an_item_weigh_1_together():
  items = [
    Item(user("p"), ("aaa", "b"), (1, 2), "f", "1"),
    Item(user("p"), ("a", "bb", "cccc"), (1, 2, 2), "f", "2"),
  ]
  pairs = reward_calibration.gather_pairs(
    items, [np.array([1.0, 0]), np.array([0.0, 1, -1])]
  )
  assert pairs.margin.tolist() == [1, -1, 1]
  assert pairs.length.tolist() == [2, -1, -3]
  assert pairs.weight.tolist() == [1, 0.5, 0.5]
  figures = reward_calibration.by_length(pairs)
  assert figures["longer"]["mean"] == 1 and figures["shorter"]["mean"] == 0.5
  # The longer answer wins in the first item and in half of the second.
  assert figures["prefers_longer"]["mean"] == 0.75
  assert figures["longer_is_better"]["mean"] == 0.5


def test_a_model_of_length_alone_is_exposed():
  random = np.random.default_rng(2)
  items, scores = [], []
  for i in range(200):
    sizes = random.integers(1, 99, 2)
    items.append(
      Item(user("p"), ("x" * sizes[0], "y" * sizes[1]), (1, 2), "f", str(i))
    )
    scores.append(sizes / 10.0)
  figures = reward_calibration.by_length(
    reward_calibration.gather_pairs(items, scores)
  )
  assert figures["prefers_longer"]["mean"] == 1
  assert figures["longer"]["mean"] == 1 and figures["shorter"]["mean"] == 0
  groups = figures["groups"]
  assert len(groups) == 5 and groups[0]["accuracy"]["mean"] == 0
  assert groups[-1]["accuracy"]["mean"] == 1
  assert all(a["high"] < b["low"] for a, b in itertools.pairwise(groups))
  json.dumps(figures)
