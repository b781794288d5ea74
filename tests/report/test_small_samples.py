"""Tests that a report concludes nothing from few prompts, rankings or rows."""

import json

import pytest

from instructgpt_jax import statistics
from instructgpt_jax.report import conclusions, page
from instructgpt_jax.report import results as results_lib


def leaf(mean, low, high, units):
  return {"mean": mean, "low": low, "high": high, "units": units}


def small(prompts=11, rankings=1, rows=200):
  """A report in which PPO-ptx wins nearly always, on few prompts."""

  def model(gold, wins, loss):
    return {
      "win_rate": leaf(wins, wins - 0.1, wins + 0.1, prompts),
      "judge_score": leaf(gold, gold - 0.01, gold + 0.01, prompts),
      "lm_loss": leaf(loss, loss - 0.01, loss + 0.01, rows),
    }

  models = {
    "base": model(0.1, 0.2, 2.0),
    "sft": model(0.3, 0.5, 2.4),
    "ppo": model(0.4, 0.7, 2.5),
    "ppo_ptx": model(0.5, 0.818, 2.1),
  }
  for name in ("sft", "ppo_ptx"):
    models[name]["greedy"] = dict(models[name])
  one = statistics.ratio_interval([1.0], [3.0], share=True)
  many = leaf(0.61, 0.58, 0.64, rankings)
  return {
    "judge": "gold labeler",
    "models": models,
    "reward_model": {"accuracy": one.as_dict() if rankings == 1 else many},
  }


FIRM = ("beats", "loses to", "cannot be told", "in this order", "not below")


def test_the_summary_begins_with_firm_conclusions():
  summary = conclusions.verdict(small())
  # 200 rows of text are enough for the LM loss.
  assert summary[0].startswith("PPO adds 0.500 nats")
  limit = summary[1]
  assert "11 held-out prompts" in limit and "1 ranked held-out prompt:" in limit
  assert "fewer than 30" in limit and "nothing can be concluded" in limit
  for sentence in summary:
    assert not any(word in sentence for word in FIRM), sentence
  assert any("81.8\u00a0%" in sentence for sentence in summary[2:])
  assert any("33.3\u00a0% [–]" in sentence for sentence in summary[2:])


@pytest.mark.parametrize(
  "counts, start",
  [
    (
      {"prompts": 100},
      "There is only 1 ranked held-out prompt: from fewer than 30",
    ),
    (
      {"prompts": 100, "rankings": 2},
      "There are only 2 ranked held-out prompts: from",
    ),
    (
      {"rankings": 100, "rows": 1},
      "There are only 11 held-out prompts and 1 row of held-out text: from",
    ),
    (
      {"prompts": 1, "rows": 5},
      "There is only 1 held-out prompt, 5 rows of held-out text and 1 ranked"
      " held-out prompt: from",
    ),
  ],
)
def test_counts_are_in_grammatical_number(counts, start):
  few = [x for x in conclusions.verdict(small(**counts)) if "only" in x]
  assert few[0].startswith(start)


@pytest.mark.parametrize("rows", [5, 29])
def test_rows_of_text_are_counted_as_well(rows):
  summary = conclusions.verdict(small(rows=rows))
  assert summary[0].startswith("There are only 11 held-out prompts")
  assert f"{rows} rows of held-out text" in summary[0]


@pytest.mark.parametrize("units", [30, 500])
def test_enough_units_allow_conclusions(units):
  summary = conclusions.verdict(small(units, units, units))
  assert summary[0].startswith("PPO-ptx beats SFT in 81.8")
  assert not any("only" in sentence for sentence in summary)
  assert conclusions.small_samples(small(units, units, units)) == {}


def test_few_prompts_of_held_out_labelers_are_named():
  results = small(prompts=100, rankings=100)
  results["reward_model"]["held_out_labelers"] = leaf(0.6, 0.2, 0.9, 7)
  assert conclusions.small_samples(results) == {
    "ranked prompts of held-out labelers": 7
  }


def test_page_and_terminal_show_counts_and_dashes(tmp_path):
  results = small()
  path = page.write_report(results, tmp_path)
  shown = path.read_text()
  assert "11 held-out prompts" in shown and "nothing can be concluded" in shown
  assert "[33.3, 33.3]" not in shown and "[–]" in shown
  table = page.terminal_table(results)
  assert "11 held-out prompts" in " ".join(table.split())
  assert "beats" not in table
  # What was written is read back alike.
  again = json.loads((tmp_path / "report.json").read_text())
  assert conclusions.verdict(again) == conclusions.verdict(results)
  assert again["reward_model"]["accuracy"] == {
    "mean": pytest.approx(1 / 3), "low": None, "high": None, "units": 1,
  }  # fmt: skip


def test_a_leaf_without_bounds_shows_a_dash_where_units_are_known():
  unknown = results_lib.leaf({"mean": 0.5, "low": None, "high": None,
                              "units": 1})  # fmt: skip
  assert unknown is not None and unknown.few
  assert unknown.text() == "0.500 [–]" and unknown.narrow() == "0.500±–"
  assert unknown.percent() == "50.0\u00a0% [–]"
  assert page.cell(unknown, 2) == ("0.50", "–")
  plain = results_lib.leaf(0.5)
  assert plain is not None and not plain.few
  assert (plain.text(), plain.narrow()) == ("0.500", "0.500")
  assert results_lib.leaf(unknown.as_dict()) == unknown
  assert set(plain.as_dict()) == {"mean", "low", "high"}
