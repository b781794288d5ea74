"""Agreement, α, speed and win rates beside computations by hand."""

import itertools
import math
import random

import pytest

from instructgpt_jax.labeling import quality, reliability
from instructgpt_jax.labeling.label_records import (
  LabelRecord,
  make_record,
  ranks_of_confidence,
)
from tests.interop import tiny

WEEK = 7 * 86400.0
MONDAY = 1_743_379_200.0  # 2025-03-31 00:00 UTC


def label(item, labeler, ranks, **fields):
  return LabelRecord(
    item_id=item, labeler=labeler, ranks=tuple(ranks), **fields
  )


def twin(records):
  """Computes (agreeing, pairs, ties) per item, pair by pair."""
  result = {}
  for a, b in itertools.combinations(records, 2):
    if a.item_id != b.item_id or not a.ranks or not b.ranks:
      continue
    sums = result.setdefault(a.item_id, [0, 0, 0])
    for i in range(len(a.ranks)):
      for j in range(i):
        if a.ranks[i] == a.ranks[j] or b.ranks[i] == b.ranks[j]:
          sums[2] += 1
          continue
        sums[1] += 1
        sums[0] += (a.ranks[i] < a.ranks[j]) == (b.ranks[i] < b.ranks[j])
  return result


def random_records(seed, items=40, labelers=5, kinds=("", "chat")):
  rng = random.Random(seed)
  records = []
  for item in range(items):
    size = rng.randint(2, 9)
    for name in rng.sample("abcdefgh"[:labelers], rng.randint(1, labelers)):
      ranks = [rng.randint(1, size) for _ in range(size)]
      records.append(
        label(
          item,
          name,
          ranks if rng.random() < 0.9 else (),
          kind=kinds[item % len(kinds)],
          held_out=name == "b",
          overall=tuple(rng.randint(1, 7) for _ in range(size)),
          submitted_at=MONDAY + rng.random() * 3 * WEEK,
        )
      )
  rng.shuffle(records)
  return records


def test_agreement_of_two_rankings_by_hand():
  # Pairs (1,2) alike, (1,3) otherwise, (2,3) otherwise.
  assert quality.compare_ranks([1, 2, 3], [2, 3, 1]) == (1, 3, 0)
  # The first ties (1,2), the second ties (2,3); (1,3) is ordered alike.
  assert quality.compare_ranks([1, 1, 2], [1, 2, 2]) == (1, 1, 2)
  assert quality.compare_ranks([1, 1], [2, 1]) == (0, 0, 1)


@pytest.mark.parametrize("seed", range(10))
def test_agreement_equals_counting_pair_by_pair(seed):
  records = random_records(seed)
  result = quality.agreement(quality.compare_labels(records))
  items = twin(records)
  assert result.agreeing == sum(a for a, _, _ in items.values())
  assert result.pairs == sum(n for _, n, _ in items.values())
  assert result.ties == sum(t for _, _, t in items.values())
  assert result.share == result.agreeing / result.pairs
  assert result.items == sum(n > 0 for _, n, _ in items.values())


def test_standard_error_is_that_of_independent_items():
  # With one pair an item it is the one of a proportion, with n − 1.
  records = []
  for item in range(50):
    records += [label(item, "a", (1, 2)), label(item, "b", (1, 2))]
    if item < 15:
      records[-1] = label(item, "b", (2, 1))
  result = quality.agreement(quality.compare_labels(records))
  assert result.share == 0.7
  assert result.standard_error == pytest.approx(math.sqrt(0.7 * 0.3 / 49))


def test_copies_of_a_pair_do_not_make_it_more_certain():
  few, many = [], []
  for item in range(30):
    order = (1, 2) if item % 3 else (2, 1)
    few += [label(item, "a", (1, 2)), label(item, "b", order)]
    many += [label(item, name, (1, 2)) for name in "ac"]
    many += [label(item, name, order) for name in "bd"]
  a = quality.agreement(quality.compare_labels(few))
  cross = [
    c
    for c in quality.compare_labels(many)
    if (c.first.labeler in "ac") != (c.second.labeler in "ac")
  ]
  b = quality.agreement(cross)
  assert b.pairs == 4 * a.pairs
  assert (b.share, b.standard_error) == pytest.approx(
    (a.share, a.standard_error)
  )


def test_no_pairs_have_no_agreement():
  for records in ([], [label(1, "a", (1, 2)), label(1, "b", (1, 1))]):
    result = quality.agreement(quality.compare_labels(records))
    assert math.isnan(result.share) and result.pairs == 0
    assert "no pairs" in str(result)
  one = [label(1, "a", (1, 2)), label(1, "b", (1, 2))]
  result = quality.agreement(quality.compare_labels(one))
  assert result.share == 1.0 and math.isnan(result.standard_error)
  assert str(result) == "100.0 % of 1 pairs (0 ties excluded)"


def test_groups_add_up():
  records = random_records(3)
  comparisons = quality.compare_labels(records)
  whole = quality.agreement(comparisons)
  for groups in (
    quality.agreement_by(comparisons, quality.by_labelers),
    quality.agreement_by(comparisons, quality.by_kind),
    quality.agreement_by(comparisons, quality.by_week),
    quality.agreement_by(comparisons, quality.by_group),
  ):
    assert sum(g.pairs for g in groups.values()) == whole.pairs
    assert sum(g.agreeing for g in groups.values()) == whole.agreeing
    assert sum(g.ties for g in groups.values()) == whole.ties
    assert len(groups) > 1
  by_labeler = quality.agreement_by(comparisons, quality.by_labeler)
  assert sum(g.pairs for g in by_labeler.values()) == 2 * whole.pairs


def test_a_labeler_is_compared_with_all_others():
  records = random_records(4)
  result = quality.agreement_by(
    quality.compare_labels(records), quality.by_labeler
  )
  for name, row in result.items():
    mine = [r for r in records if r.labeler == name]
    sums = [0, 0, 0]
    for one in mine:
      for other in records:
        if other.labeler != name:
          for counts in twin([one, other]).values():
            sums = [s + c for s, c in zip(sums, counts, strict=True)]
    assert [row.agreeing, row.pairs, row.ties] == sums


def test_held_out_labelers_are_compared_apart():
  records = [
    label(1, "a", (1, 2)),
    label(1, "b", (1, 2)),
    label(1, "x", (2, 1), held_out=True),
    label(1, "y", (2, 1), held_out=True),
  ]
  groups = quality.agreement_by(
    quality.compare_labels(records), quality.by_group
  )
  assert {k: g.share for k, g in groups.items()} == {
    "training": 1.0,
    "between": 0.0,
    "held out": 1.0,
  }
  assert groups["between"].pairs == 4


def test_weeks_begin_on_monday():
  assert quality.week_of(MONDAY) == "2025-03-31"
  assert quality.week_of(MONDAY + WEEK - 1) == "2025-03-31"
  assert quality.week_of(MONDAY + WEEK) == "2025-04-07"
  first = label(1, "a", (1, 2), submitted_at=MONDAY)
  second = label(1, "b", (1, 2), submitted_at=MONDAY + WEEK)
  weeks = quality.agreement_by(
    quality.compare_labels([second, first]), quality.by_week
  )
  assert list(weeks) == ["2025-04-07"]


def test_the_item_with_most_disagreement_is_first():
  records = [
    label(1, "a", (1, 2, 3)),
    label(1, "b", (1, 2, 3)),
    label(2, "a", (1, 2, 3)),
    label(2, "b", (3, 2, 1)),
    label(3, "a", (1, 2, 3)),
    label(3, "b", (1, 3, 2)),
    label(4, "a", (1, 1, 1)),
    label(4, "b", (1, 3, 2)),
    label(5, "a", (1, 2)),
    label(5, "b", (2, 1)),
    label(6, "a", (1, 2)),
  ]
  rows = quality.disagreement(quality.compare_labels(records))
  assert [r.item_id for r in rows] == [2, 5, 3, 1, 4]
  assert rows[0] == (2, 1.0, 3, 2)
  assert rows[2].share == pytest.approx(1 / 3)
  assert math.isnan(rows[-1].share)


def test_gold_accuracy_counts_pairs_of_gold_items_only():
  records = [
    label(1, "a", (1, 2, 3), gold_ranks=(1, 2, 3)),
    label(2, "a", (1, 2, 3), gold_ranks=(1, 3, 2)),
    label(3, "a", (3, 2, 1)),
    label(1, "b", (1, 1, 2), gold_ranks=(1, 2, 3)),
  ]
  result = quality.gold_accuracy(records)
  assert result["a"][:1] + result["a"][2:] == (5 / 6, 5, 6, 0, 2)
  assert (result["b"].share, result["b"].pairs, result["b"].ties) == (1.0, 2, 1)


def alpha_by_hand(units, values):
  """Computes ordinal α from its definition, value by value."""
  units = [u for u in units if len(u) > 1]
  totals = {v: sum(u.count(v) for u in units) for v in values}

  def distance(a, b):
    low, high = min(a, b), max(a, b)
    between = sum(totals[v] for v in values if low <= v <= high)
    return (between - (totals[a] + totals[b]) / 2) ** 2

  observed = sum(
    distance(a, b) / (len(u) - 1)
    for u in units
    for a, b in itertools.permutations(u, 2)
  )
  n = sum(totals.values())
  expected = sum(
    totals[a] * (totals[b] - (a == b)) * distance(a, b)
    for a in values
    for b in values
  ) / (n - 1)
  return 1 - observed / expected


@pytest.mark.parametrize("values", ["ranks", "overall"])
def test_alpha_equals_its_definition(values):
  tiny.library("krippendorff")
  records = random_records(5)
  units = {}
  for record in records:
    for i, value in enumerate(getattr(record, values)):
      units.setdefault((record.item_id, i), []).append(value)
  expected = alpha_by_hand(list(units.values()), range(1, 10))
  assert reliability.krippendorff_alpha(records, values) == pytest.approx(
    expected
  )


@pytest.mark.parametrize(
  "keys",
  [quality.by_labeler, quality.by_labelers, quality.by_kind, quality.by_week],
)
def test_alpha_of_a_group_is_that_of_its_compared_labels(keys):
  tiny.library("krippendorff")
  comparisons = quality.compare_labels(random_records(6))
  units = {}
  for comparison in comparisons:
    first, second = comparison.first.ranks, comparison.second.ranks
    pairs = list(zip(first, second, strict=True))
    for key in keys(comparison):
      units.setdefault(key, []).extend(pairs)
  alphas = reliability.alpha_by(comparisons, keys)
  assert list(alphas) == sorted(units) and len(alphas) > 1
  for key, alpha in alphas.items():
    assert alpha == pytest.approx(alpha_by_hand(units[key], range(1, 10)))


def test_gold_items_count_in_their_own_measure_only():
  tiny.library("krippendorff")
  records = [label(1, n, r) for n, r in (("a", (1, 2)), ("b", (2, 1)))]
  gold = [
    label(2, name, (1, 2), gold_ranks=(1, 2), sources=("x", "y"))
    for name in "abcdefgh"
  ]
  result = quality.agreement(quality.compare_labels([*records, *gold]))
  assert (result.share, result.pairs) == (0.0, 1)
  alpha = reliability.krippendorff_alpha
  assert alpha([*records, *gold]) == alpha(records)
  assert quality.win_rates(gold) == []
  assert quality.gold_accuracy([*records, *gold])["a"].share == 1.0


def test_the_agreement_of_the_paper_is_that_of_training_labelers():
  training = [label(1, n, (1, 2)) for n in "ab"]
  held_out = [label(1, n, (2, 1), held_out=True) for n in "cd"]
  assert quality.training_labels([*held_out, *training]) == training
  assert quality.training_labels(held_out) == held_out


def test_alpha_of_equal_and_of_no_labels():
  tiny.library("krippendorff")
  equal = [label(i, n, (1, 2, 3)) for i in range(4) for n in "ab"]
  assert reliability.krippendorff_alpha(equal) == 1.0
  assert math.isnan(reliability.krippendorff_alpha([]))
  assert math.isnan(reliability.krippendorff_alpha([label(1, "a", (1, 2))]))
  ties = [label(1, n, (1, 1)) for n in "ab"]
  assert math.isnan(reliability.krippendorff_alpha(ties))


def test_labels_faster_than_reading_are_suspicious():
  slow = [label(i, "a", (1, 2), characters=1500, seconds=60) for i in range(99)]
  fast = [label(i, "b", (1, 2), characters=1500, seconds=19) for i in range(5)]
  mixed = [*slow[:45], *fast]
  by_name = quality.speed_by_labeler([*slow, *fast])
  assert by_name["a"] == (99, 60, 0, False)
  assert by_name["b"] == (5, 19, 5, True)
  # Exactly a tenth is suspicious; four labels of any number are not.
  assert quality.speed_by_labeler(
    [label(i, "c", (1, 2), characters=r.characters, seconds=r.seconds)
     for i, r in enumerate(mixed)]
  )["c"] == (50, 60, 5, True)  # fmt: skip
  assert not quality.speed_by_labeler(fast[:4])["b"].suspicious
  written = [label(1, "d", (), task="demonstration", seconds=1)]
  assert quality.speed_by_labeler(written) == {}


def test_win_rates_average_the_labels_of_an_item():
  sources = ("ppo", "sft")
  records = [
    label(1, "a", (1, 2), sources=sources),
    label(1, "b", (1, 2), sources=sources),
    label(1, "c", (2, 1), sources=sources),
    label(2, "a", (1, 1), sources=sources),
    label(3, "a", (1, 2), sources=sources[::-1]),
    label(4, "a", (1, 2)),
  ]
  rows = {(r.model, r.baseline): r for r in quality.win_rates(records)}
  assert set(rows) == {("ppo", "sft"), ("sft", "ppo")}
  row = rows["ppo", "sft"]
  assert row.interval.mean == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
  assert (row.wins, row.ties, row.losses) == (2, 1, 2)
  assert row.interval.mean + rows["sft", "ppo"].interval.mean == pytest.approx(
    1
  )
  assert row.interval.low < row.interval.mean < row.interval.high


def test_completions_of_one_model_are_not_compared():
  records = [label(1, "a", (1, 2, 3), sources=("x", "x", "y"))]
  rows = {(r.model, r.baseline): r for r in quality.win_rates(records)}
  assert set(rows) == {("x", "y"), ("y", "x")}
  assert (rows["x", "y"].wins, rows["x", "y"].losses) == (2, 0)


def test_confidence_becomes_an_order():
  assert [ranks_of_confidence(c) for c in (1, 4, 5, 6, 9)] == [
    (1, 2),
    (1, 2),
    (1, 1),
    (2, 1),
    (2, 1),
  ]


def record(task, content, gold=None):
  return make_record(
    item_id=1,
    task=task,
    kind="",
    payload={
      "turns": [{"role": "user", "content": "four"}],
      "completions": ["a", "bc"],
      "sources": ["x", "y"],
    },
    gold=gold,
    labeler="a",
    held_out=False,
    content=content,
    seconds=1.0,
    submitted_at=2.0,
  )


def test_records_are_made_of_contents():
  ranking = record("ranking", {"ranks": [2, 1], "overall": [3, 5]})
  assert (ranking.ranks, ranking.overall) == ((2, 1), (3, 5))
  assert ranking.characters == 7 and ranking.gold_ranks == ()
  comparison = record("comparison", {"confidence": 8}, {"confidence": 2})
  assert (comparison.ranks, comparison.gold_ranks) == ((2, 1), (1, 2))
  unable = record(
    "ranking", {"ranks": [1, 1], "overall": [1, 1], "cannot_judge": "French"}
  )
  assert (unable.ranks, unable.overall, unable.characters) == ((), (), 0)
  written = record("demonstration", {"prompt": "p", "answer": "a"})
  assert (written.ranks, written.characters) == ((), 0)
