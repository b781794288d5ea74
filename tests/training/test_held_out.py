"""Held-out evaluation in PPO, the policy that it chooses, and early ends."""

import json

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.configs import checks
from instructgpt_jax.errors import UserError
from instructgpt_jax.training import ppo_collapse, ppo_held_out
from tests.training import results

EVALUATED = (
  "--ppo.eval_every=3",
  "--ppo.eval_samples=2",
  "--run.keep_best=valid_judge_score",
  "--run.keep=1",
  "--ppo.samples_every=100",
  # So fast that the policy does not only get better.
  "--optimizer.learning_rate=1e-2",
  "--ppo.kl_coef=0",
)


def flags(stages, name="ppo"):
  return [
    *(f for f in stages.flags(name) if "--ppo.kl_" not in f),
    *EVALUATED,
    f"--ppo.judge={stages['reward']}",
  ]


@pytest.fixture(scope="module")
def evaluated(stages, tmp_path_factory):
  path = tmp_path_factory.mktemp("evaluated")
  done = stages.run("ppo", *flags(stages), f"--workdir={path}")
  assert done.status == 0, done.err
  return path


def held_out_rows(path):
  return [r for r in results.metrics(path) if "valid_rm_score" in r]


def test_evaluations_are_logged_and_are_the_means_of_the_answers(evaluated):
  rows = held_out_rows(evaluated)
  # Two updates an iteration, 12 iterations.
  assert [r["step"] for r in rows] == [0, 6, 12, 18, 24]
  assert rows[0]["valid_kl"] == pytest.approx(0, abs=1e-5)
  for row in rows:
    assert row.keys() == {
      "step", "valid_rm_score", "valid_judge_score", "valid_kl",
      "valid_response_length", "valid_ended",
    }  # fmt: skip
    # The judge is the reward model here.
    assert row["valid_judge_score"] == row["valid_rm_score"]
  # The samples are the first answers to the same prompts.
  samples = [
    json.loads(line)
    for line in (evaluated / "samples.jsonl").read_text().splitlines()
  ]
  assert {s["step"] for s in samples} == {0, 24}
  assert all(s["judge"] == s["reward"] for s in samples)


def test_the_best_evaluation_is_saved_and_its_checkpoint_kept(evaluated):
  scores = {r["step"]: r["valid_judge_score"] for r in held_out_rows(evaluated)}
  best = max(scores, key=lambda step: scores[step])
  summary = results.summary(evaluated)
  assert (summary["selected_step"], summary["selected_by"]) == (
    best,
    "valid_judge_score",
  )
  assert checkpoints.load_model_info(evaluated)["step"] == best
  assert summary["valid_judge_score"] == scores[24]
  if best:
    assert best in results.steps(evaluated)
    table = results.arrays(evaluated / "checkpoints" / str(best))
    averages = {
      name.removeprefix("ema/"): array
      for name, array in table.items()
      if name.startswith("ema/")
    }
    results.assert_same_arrays(results.model(evaluated), averages)


def test_a_killed_run_chooses_the_same_policy(evaluated, stages, tmp_path):
  command = ["experiments.ppo", *flags(stages), f"--workdir={tmp_path / 'run'}"]
  for share in (0.2, 0.7):
    child = stages.server.start(*command)
    count = int(share * results.lines(evaluated))
    assert results.kill_after(child, tmp_path / "run", count).status == -9
  done = stages.server.run(*command)
  assert done.status == 0, done.err
  results.assert_same_run(tmp_path / "run", evaluated)


def test_a_run_ends_above_stop_kl_with_the_policy_so_far(stages, tmp_path):
  command = [
    "ppo",
    *(f for f in stages.flags("ppo") if "--ppo.kl_" not in f),
    "--ppo.kl_coef=0",
    "--optimizer.learning_rate=3e-2",
    "--ppo.stop_kl=0.5",
    "--ppo.eval_every=100",
    f"--workdir={tmp_path}",
  ]
  done = stages.run(*command)
  assert done.status == 0, done.err
  log = [r for r in results.metrics(tmp_path) if "kl" in r]
  assert log[-1]["kl"] > 0.5 >= max(r["kl"] for r in log[:-2])
  last = log[-1]["step"]
  assert last < 24
  line = next(x for x in done.err.splitlines() if "--ppo.stop_kl" in x)
  assert f"iteration {last // 2} " in line
  summary = results.summary(tmp_path)
  assert summary["stopped_by"] == "ppo.stop_kl"
  assert (summary["updates"], summary["episodes"]) == (last, last * 4)
  assert checkpoints.load_model_info(tmp_path)["step"] == last
  assert held_out_rows(tmp_path)[-1]["step"] == last
  assert results.steps(tmp_path)[-1] == last
  # A run that was killed before its end does not train on.
  (tmp_path / "complete.json").unlink()
  assert stages.run(*command).status == 0
  assert results.summary(tmp_path) == summary


FIRST = {"entropy": 2.0, "distinct_responses": 1.0, "kl_per_token": 0.0}


@pytest.mark.parametrize(
  ("change", "signs"),
  [
    ({}, set()),
    ({"entropy": 0.21, "distinct_responses": 0.5, "kl_per_token": 0.5}, set()),
    ({"entropy": 0.19}, {"entropy"}),
    ({"distinct_responses": 0.49}, {"distinct_responses"}),
    ({"kl_per_token": 0.51}, {"kl_per_token"}),
    ({"entropy": 0.0, "kl_per_token": 9.0}, {"entropy", "kl_per_token"}),
  ],
)
def test_signs_of_a_collapse(change, signs):
  assert ppo_collapse.signs_of(FIRST | change, FIRST).keys() == signs


def test_each_sign_is_warned_of_once_also_by_a_resumed_run(tmp_path, capsys):
  section = configs.Ppo(rollout_batch=8, minibatch=8)
  watch = ppo_collapse.CollapseWatch("ppo", section, str(tmp_path))
  rows = [FIRST, FIRST, *[FIRST | {"entropy": 0.1}] * 3]
  for iteration, row in enumerate(rows, start=1):
    watch.observe(iteration, row)
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("warning: ppo: entropy")
  assert "iteration 3:" in line
  (tmp_path / "metrics.jsonl").write_text(
    "".join(
      json.dumps({"step": i, "episodes": 8 * i, **row}) + "\n"
      for i, row in enumerate(rows, start=1)
    )
  )
  watch = ppo_collapse.CollapseWatch("ppo", section, str(tmp_path))
  watch.observe(6, FIRST | {"entropy": 0.1})
  watch.observe(7, FIRST | {"distinct_responses": 0.1})
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("warning: ppo: distinct_responses")


def test_distinct_responses_are_logged(stages):
  shares = [r["distinct_responses"] for r in results.metrics(stages["ppo"])]
  assert all(0 < share <= 1 for share in shares)
  assert all(np.isclose(share * 8, round(share * 8)) for share in shares)


def test_a_judge_without_evaluation_is_refused():
  section = configs.Ppo(judge="runs/judge")
  with pytest.raises(UserError) as error:
    checks.check_ppo(section, configs.Data(), 4096)
  assert (error.value.code, error.value.field) == ("unused_judge", "ppo.judge")


def test_keep_best_needs_the_evaluation_that_has_it():
  assert configs.Ppo().held_out_metrics == ()
  assert configs.Ppo(eval_every=2).held_out_metrics == ("valid_rm_score",)
  judged = configs.Ppo(eval_every=2, judge="runs/judge")
  assert "valid_judge_score" in judged.held_out_metrics
  best = {"score": 1.0, "step": 4, "metric": "valid_rm_score"}
  evaluated = ppo_held_out.Evaluated({}, 4, best)
  keep = configs.Run(keep_best="valid_rm_score")
  assert evaluated.chosen(keep) == best
  assert evaluated.chosen(configs.Run()) is None
