"""Studies: their runs, and their verdicts on results."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import studies
from instructgpt_jax import statistics
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.models import heads
from instructgpt_jax.studies import scale as scale_lib
from instructgpt_jax.studies import seed_runs
from instructgpt_jax.studies import study as study_lib
from tests.studies import fake

MINI = scale_lib.MINI
ALL = list(studies.ALL.values())


@pytest.fixture(autouse=True)
def vocabulary(monkeypatch):
  monkeypatch.setattr(seed_runs.SeedRuns, "vocab_size", 330)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
  """Returns a directory where every run of every study is complete."""
  root = str(tmp_path_factory.mktemp("study"))
  for job in study_lib.all_jobs(ALL, MINI, root):
    fake.run(root, job)
  return root


def findings(root, name, chosen):
  """Returns a study's finding, with the numbers that `chosen` sets by name."""
  study = studies.ALL[name]
  families = fake.families(MINI, root)
  for family in families:
    fake.run(root, family.shared_job)
    for job in study.jobs(family):
      numbers = {}
      for key, value in chosen.items():
        if key in f"{job.name}$":
          numbers |= value
      fake.run(root, job, numbers)
  return study.analyse(families)


def test_every_job_is_a_valid_command():
  """Each run's flags are flags of its experiment, with values in range."""
  for job in study_lib.all_jobs(ALL, MINI, "root"):
    config = presets.EXPERIMENTS[job.experiment](job.flags["preset"])
    changes = {k: v for k, v in job.flags.items() if k != "preset"}
    flags.replace(config, changes)


def test_jobs_are_named_by_their_changes_and_made_once():
  jobs = study_lib.all_jobs(ALL, MINI, "root")
  assert len({j.name for j in jobs}) == len(jobs)
  commands = {}
  for job in jobs:
    text = " ".join(job.command("root")[4:])
    assert commands.setdefault(text, job.name) == job.name
  names = {j.name for j in jobs}
  for job in jobs:
    assert set(job.needs) <= names
    assert not any(c.isspace() for c in job.name)
  # γ = 2.5 and β = 0.12 are the recipe's own.
  assert sum(n.endswith("seed0/ppo_ptx/default") for n in names) == 1


def test_run_directories_do_not_nest():
  names = [j.name for j in study_lib.all_jobs(ALL, MINI, "root")]
  for name in names:
    assert not any(other.startswith(name + "/") for other in names)


def test_the_sizes_are_eight_times_apart():
  counts = []
  for size in scale_lib.SIZES:
    model = dataclasses.replace(MINI.model(size), vocab_size=330)
    network = heads.LanguageModel(model)
    shapes = heads.abstract_params(network)
    import jax

    real = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
    assert scale_lib.count_parameters(model, 330) == real
    counts.append(real)
  assert all(b >= 8 * a for a, b in zip(counts, counts[1:], strict=False))


def test_results_of_complete_runs_have_every_study(complete):
  results = study_lib.collect_results(
    ALL, MINI, complete, {"seed0/shared": 5.0}
  )
  assert list(results["studies"]) == list(studies.ALL)
  for name, study in results["studies"].items():
    assert study["complete"] and study["missing"] == 0 and study["figures"]
    assert study["tables"] and study["measured"]
    few = name in ("model_size", "reward_limits")  # their runs are long
    assert study["seeds"] == ([0, 1, 2] if few else [0, 1, 2, 3, 4])
    expected = None if study["kind"] == "ours" else bool
    assert (
      study["reproduced"] is None
      if expected is None
      else isinstance(study["reproduced"], bool)
    )
    assert results["verdicts"][name]["measured"] == study["measured"]
  json.dumps(results, allow_nan=False)


def test_one_missing_run_leaves_its_studies_without_a_verdict(tmp_path):
  root = str(tmp_path)
  chosen = [studies.ALL["kl_with_ptx"]]
  jobs = study_lib.all_jobs(chosen, MINI, root)
  for job in jobs[:-1]:
    fake.run(root, job)
  (result,) = study_lib.collect_results(chosen, MINI, root, {})[
    "studies"
  ].values()
  assert result["reproduced"] is None and result["missing"] == 1
  assert result["seeds"] == [0, 1, 2, 3]  # results so far are shown
  assert result["figures"]
  empty = study_lib.collect_results(chosen, MINI, str(tmp_path / "none"), {})
  (result,) = empty["studies"].values()
  assert result["seeds"] == [] and result["figures"] == []


def test_kl_with_ptx_needs_an_interior_best_beta(tmp_path):
  inside = {"kl_coef=0$": {"gold_mean": 0.1}, "kl_coef=2$": {"gold_mean": 0.3}}
  result = findings(str(tmp_path / "a"), "kl_with_ptx", inside)
  assert result.reproduced
  rising = {"kl_coef=0$": {"gold_mean": 0.1}, "kl_coef=2$": {"gold_mean": 0.9}}
  assert not findings(str(tmp_path / "b"), "kl_with_ptx", rising).reproduced


@pytest.mark.parametrize(
  ("chosen", "expected"),
  [
    ({}, True),
    ({"ptx_coef=60$": {"tasks": 0.1, "rm": -1.0, "lm_loss": 1.0}}, False),
    ({"ptx_coef=60$": {"tasks": 0.9, "rm": 9.0, "lm_loss": 1.0}}, False),
  ],
)
def test_ptx_coef_needs_repair_and_cost(tmp_path, chosen, expected):
  numbers = {
    "measured/ppo/": {"lm_loss": 1.5, "tasks": 0.2, "rm": 1.0},
    "ptx_coef=60$": {"tasks": 0.8, "rm": -1.0, "lm_loss": 1.0},
  } | chosen
  assert findings(str(tmp_path), "ptx_coef", numbers).reproduced is expected


def test_kl_coef_fails_where_a_beta_repairs(tmp_path):
  taxed = {"measured/ppo/": {"lm_loss": 1.5}}
  assert findings(str(tmp_path / "a"), "kl_coef", taxed).reproduced
  repaired = taxed | {"kl_coef=2$": {"lm_loss": 0.9}}
  assert not findings(str(tmp_path / "b"), "kl_coef", repaired).reproduced


def test_model_size_compares_the_smallest_aligned_with_the_largest_base(
  tmp_path,
):
  aligned = {"measured/ppo_ptx/default$": {"gold_mean": 0.9}}
  assert findings(str(tmp_path / "a"), "model_size", aligned).reproduced
  base = {"pretrain/large$": {"gold_mean": 0.9}}
  assert not findings(str(tmp_path / "b"), "model_size", base).reproduced


def test_policy_init_needs_small_differences(tmp_path):
  gain = {
    "measured/policy_init/": {"gold_mean": 0.2},
    "measured/ppo_ptx": {"gold_mean": 0.5},
  }
  assert findings(str(tmp_path / "a"), "policy_init", gain).reproduced
  spread = gain | {"from=1x0$": {"gold_mean": 0.1}}
  assert not findings(str(tmp_path / "b"), "policy_init", spread).reproduced


def test_learning_rate_needs_ppo_to_fail_first(tmp_path):
  start = {
    "measured/policy_init/": {"gold_mean": 0.3},
    "measured/ppo": {"gold_mean": 0.5},
  }
  diverged = start | {"ppo/learning_rate=0.01$": {"gold_mean": 0.1}}
  assert findings(str(tmp_path / "a"), "learning_rate", diverged).reproduced
  both = diverged | {"ptx/learning_rate=0.01$": {"gold_mean": 0.0}}
  assert not findings(str(tmp_path / "b"), "learning_rate", both).reproduced
  assert not findings(str(tmp_path / "c"), "learning_rate", start).reproduced


def test_overoptimization_needs_gold_to_fall_while_the_proxy_rises(tmp_path):
  gone = {"@": {"gold_mean": 0.5, "rm": 1.0}}
  bad = gone | {"@80$": {"gold_mean": 0.1, "rm": 3.0}}
  assert findings(str(tmp_path / "a"), "overoptimization", bad).reproduced
  good = gone | {"@80$": {"gold_mean": 0.9, "rm": 3.0}}
  assert not findings(str(tmp_path / "b"), "overoptimization", good).reproduced


def test_the_laws_of_gao_are_recovered():
  d = np.array([0.2, 0.7, 1.5, 3.0, 6.0])
  fitted = studies.overoptimization.fitted
  for bend in (np.log, lambda x: x):
    gains = d * (0.7 - 0.2 * bend(d))
    np.testing.assert_allclose(fitted(d, gains, bend), (0.7, 0.2), atol=1e-9)


def test_reward_model_needs_all_four(tmp_path):
  accuracies = {
    "pairs=true": {"loss": 0.9},
    "epochs=4": {"loss": 1.2},
  }
  assert findings(str(tmp_path / "a"), "reward_model", accuracies).reproduced
  moved = accuracies | {"learning_rate=7.5e-05": {"accuracy": 0.5}}
  assert not findings(str(tmp_path / "b"), "reward_model", moved).reproduced
  alike = {"epochs=4": {"loss": 1.2}}
  assert not findings(str(tmp_path / "c"), "reward_model", alike).reproduced


def test_reward_limits_says_what_binds(tmp_path):
  """One cause closes most of the gap of 0.15, another a part, others none."""
  chosen = {
    "pairs/reward/noise=0$": {"accuracy": 0.72},
    "pairs/reward/pool,max_rankings=32000$": {"accuracy": 0.66},
    "pairs/reward/large$": {"accuracy": 0.5},  # the middle one is better
  }
  result = findings(str(tmp_path), "reward_limits", chosen)
  assert result.reproduced is None
  table = {row[0]: row for row in result.tables[0].rows}
  assert [row[0] for row in result.tables[0].rows][:2] == ["noise", "data"]
  assert {cause: row[-1] for cause, row in table.items()} == {
    "noise": "binds",
    "data": "binds",
    "capacity": "does not bind",
    "representation": "does not bind",
    "optimisation": "does not bind",
  }
  assert table["noise"][2].mean == pytest.approx(0.12, abs=0.01)
  assert "Binds: noise, data; does not bind:" in result.measured
  along = next(t for t in result.tables if t.caption == "Rankings")
  gains = {row[0]: row[3] for row in along.rows}
  assert gains["2,000"] is None  # the recipe's own
  assert gains["32,000"].mean == pytest.approx(0.06, abs=0.01)
  panel = result.figures[0].panels[0].series[0]
  shown = {point.x: point for point in panel.points}
  assert shown[32000].high - shown[32000].mean == pytest.approx(
    gains["32,000"].high - gains["32,000"].mean
  )
  beyond = "The labels hold more than the network reads."
  assert beyond not in result.measured
  chosen["pairs/pretrain/shared$"] = {"accuracy": 0.7}
  read = findings(str(tmp_path / "read"), "reward_limits", chosen)
  assert beyond in read.measured


@pytest.mark.parametrize(
  "bounds, expected",
  [
    ((0.04, 0.06), "binds"),
    ((-0.01, 0.11), "unclear"),
    ((0.001, 0.005), "does not bind"),
    ((0.001, 0.035), "unclear"),
    ((-0.06, -0.04), "does not bind"),
    ((np.nan, np.nan), "unclear"),
  ],
)
def test_a_cause_binds_if_its_removal_closes_a_fifth(bounds, expected):
  gain = statistics.Interval(np.nansum(bounds) / 2, *bounds)
  assert studies.reward_limits.verdict(gain, gap=0.15) == expected


def test_a_removal_is_chosen_on_other_seeds():
  names = {"a": [0.0, 0.3, 0.0], "b": [0.2, 0.0, 0.0]}
  gains = {k: [np.full(4, x) for x in v] for k, v in names.items()}
  chosen = studies.reward_limits.chosen_gains(gains)
  # Seed 0 takes a for seed 1's sake, seed 1 takes b for seed 0's.
  assert [float(x[0]) for x in chosen] == [0.0, 0.0, 0.0]
  alone = {"a": [np.array([1.0, 0.0, 1.0, 0.1])], "b": [np.zeros(4)]}
  (odd,) = studies.reward_limits.chosen_gains(alone)
  np.testing.assert_array_equal(odd, [0.0, 0.1])


def test_weak_rewards_names_what_changes(tmp_path):
  result = findings(str(tmp_path / "none"), "weak_rewards", {})
  assert result.reproduced is None
  assert result.measured.startswith("Nothing changes")
  chosen = {
    "pairs/reward/label_smoothing": {"accuracy": 0.7},
    "measured/ppo_ptx/reward_ensemble=worst$": {"gold_mean": 0.3},
  }
  result = findings(str(tmp_path / "some"), "weak_rewards", chosen)
  parts = result.measured.removeprefix("Beyond the interval: ").split("; ")
  assert [part.rpartition(":")[0] for part in parts] == [
    "label smoothing 0.1",
    "ensemble: worst",
    "ensemble: worst",
  ]
  table = {row[0]: row[1:] for row in result.tables[0].rows}
  accuracy, gained, gold, lost = table["label smoothing 0.1"][:4]
  assert accuracy.mean == pytest.approx(0.71, abs=0.01)
  assert gained.mean == pytest.approx(0.1, abs=0.01)
  assert lost.mean == pytest.approx(0, abs=0.02)
  assert table["the recipe"][1] is None
  assert gold.mean == pytest.approx(table["the recipe"][2].mean, abs=0.02)


def test_the_members_of_an_ensemble_differ_from_public_comparisons_on():
  runs = seed_runs.SeedRuns(MINI, 1, "root")
  study_jobs = {job.name: job for job in studies.weak_rewards.jobs(runs)}
  first, *others = (
    study_jobs["seed1/ppo_ptx/reward_ensemble=mean"]
    .flags["ppo.reward_model"]
    .split(",")
  )
  assert first == runs.directory("reward")
  assert len(others) == 2
  seeds = set()
  for other in others:
    (member,) = (
      job for job in study_jobs.values() if runs.directory(job) == other
    )
    (start,) = (
      job
      for job in study_jobs.values()
      if runs.directory(job) == member.flags["init_from"]
    )
    assert start.flags["data.comparisons"].endswith("public_comparisons.jsonl")
    assert start.flags["seed"] == member.flags["seed"]
    seeds.add(member.flags["seed"])
  assert len(seeds | {1}) == 3


@pytest.mark.parametrize("study", ["reward_limits", "weak_rewards"])
@pytest.mark.parametrize(
  "scale", scale_lib.SCALES.values(), ids=lambda s: s.name
)
def test_reward_models_have_valid_runs_at_every_scale(scale, study):
  runs = seed_runs.SeedRuns(scale, 0, "root")
  study_jobs = studies.ALL[study].jobs(runs)
  names = {job.name for job in study_jobs} | {runs.shared_job.name}
  for job in study_jobs:
    config = presets.EXPERIMENTS[job.experiment](job.flags["preset"])
    changes = {k: v for k, v in job.flags.items() if k != "preset"}
    flags.replace(config, changes)
    assert set(job.needs) <= names
  sizes = [
    scale_lib.count_parameters(scale.model(size), 330) for size in scale.sizes
  ]
  assert sizes == sorted(sizes)


def test_models_that_are_measured_have_the_network_of_their_checkpoint():
  """Runs of several sizes are measured with the recipe's flags."""
  for job in study_lib.all_jobs(ALL, MINI, "root"):
    if job.experiment in ("evaluate", "labels", "reward_pairs"):
      assert not any(name.startswith("model.") for name in job.flags)


def test_sft_epochs_needs_a_better_choice_by_reward(tmp_path):
  better = {"select_by=reward$": {"gold_mean": 0.6}}
  result = findings(str(tmp_path / "a"), "sft_epochs", better)
  assert result.reproduced and "2 epochs" in result.measured
  assert not findings(str(tmp_path / "b"), "sft_epochs", {}).reproduced


def test_sft_epochs_has_no_verdict_with_one_seed(tmp_path, monkeypatch):
  """The rise of the RM score has one number a seed, and so no interval."""
  better = {"select_by=reward$": {"gold_mean": 0.6}}
  whole = fake.families
  monkeypatch.setattr(fake, "families", lambda *args: whole(*args)[:1])
  result = findings(str(tmp_path / "a"), "sft_epochs", better)
  assert result.reproduced is None and "(one seed)" in result.measured
  monkeypatch.setattr(fake, "families", lambda *args: whole(*args)[:2])
  result = findings(str(tmp_path / "b"), "sft_epochs", better)
  assert result.reproduced is not None


@pytest.mark.parametrize("name", [study.name for study in ALL])
def test_every_study_can_be_described_with_one_seed(
  tmp_path, monkeypatch, name
):
  whole = fake.families
  monkeypatch.setattr(fake, "families", lambda *args: whole(*args)[:1])
  result = findings(str(tmp_path), name, {})
  assert result.reproduced in (True, False, None) and result.measured


def test_failures_needs_four_gains_over_the_base(tmp_path):
  better = {
    "measured/ppo_ptx/default$": {"failures": 0.02},
    "measured/sft/shared$": {"gold_mean": 0.6},
  }
  assert findings(str(tmp_path / "a"), "failures", better).reproduced
  assert not findings(str(tmp_path / "b"), "failures", {}).reproduced


def test_wrong_sizes_and_seeds_are_user_errors(tmp_path):
  with pytest.raises(UserError, match="mini"):
    scale_lib.get_scale("minni")
  with pytest.raises(UserError) as bad_seeds:
    scale_lib.with_seeds(MINI, "0,x")
  assert bad_seeds.value.code == "bad_seeds"
  assert scale_lib.with_seeds(MINI, "3,4,3").seeds == (3, 4)
  study_lib.lock_size(str(tmp_path), MINI)
  assert study_lib.read_size(str(tmp_path)) == MINI
  with pytest.raises(UserError, match="another --workdir"):
    study_lib.lock_size(str(tmp_path), scale_lib.with_seeds(MINI, "7"))
  with pytest.raises(UserError, match="add seeds"):
    study_lib.lock_size(str(tmp_path), scale_lib.with_seeds(MINI, "0,1"))
  more = scale_lib.with_seeds(MINI, "0,1,2,3,4,8")
  study_lib.lock_size(str(tmp_path), more)
  assert study_lib.read_size(str(tmp_path)) == more
  (tmp_path / "study.json").write_text('{"size": "mini"}')
  with pytest.raises(UserError, match="not a study"):
    study_lib.read_size(str(tmp_path))
