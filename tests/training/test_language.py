"""Pretraining and SFT as stages: loss weights and the saved step."""

import json

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.errors import UserError
from instructgpt_jax.training import sft, supervised
from tests.training import exact, results


def demonstrations(stages, split):
  text = (stages.data / "demonstrations.jsonl").read_text()
  records = map(json.loads, text.splitlines())
  return [r for r in records if r["split"] == split]


def run_sft(stages, path, *flags):
  """Runs SFT with other flags; what it logs."""
  done = stages.run("sft", *stages.flags("sft"), *flags, f"--workdir={path}")
  assert done.status == 0, done.err
  return results.metrics(path)


@pytest.fixture(scope="module")
def losses(stages):
  """Returns split → losses of prompt and reply tokens, by the base model."""
  base = exact.Finished(stages["pretrain"])
  return {
    split: [
      base.token_losses(r["prompt"], r["completion"])
      for r in demonstrations(stages, split)
    ]
    for split in ("train", "valid")
  }


@pytest.mark.parametrize("masked", [True, False])
def test_invariant_08_loss_is_on_replies_with_their_end(
  masked, losses, stages, tmp_path
):
  log = run_sft(
    stages,
    tmp_path,
    f"--sft.mask_prompt={masked}",
    "--sft.batch_size=24",  # all: the first loss is that of the base model
    "--sft.dropout=0",
    "--sft.epochs=1",
    "--optimizer.learning_rate=1e-12",
  )
  for split, actual in (
    ("train", log[0]["loss"]),
    ("valid", log[-1]["valid_loss"]),
  ):
    parts = [
      reply if masked else np.concatenate([prompt, reply])
      for prompt, reply in losses[split]
    ]
    assert actual == pytest.approx(np.concatenate(parts).mean(), rel=1e-5)
    without_end = np.concatenate([part[:-1] for part in parts]).mean()
    assert abs(actual - without_end) > 1e-3
  assert results.summary(tmp_path)["steps"] == 1


def test_validation_loss_chooses_the_saved_step(stages):
  path = stages["sft"]
  log = results.metrics(path)
  measured = {r["step"]: r["valid_loss"] for r in log if "valid_loss" in r}
  best = min(measured, key=lambda step: measured[step])
  assert best < max(measured)  # or the rest would say nothing
  summary = results.summary(path)
  assert (summary["selected_step"], summary["selected_by"]) == (
    best,
    "valid_loss",
  )
  model = exact.Finished(path)
  saved = [
    model.token_losses(r["prompt"], r["completion"])[1]
    for r in demonstrations(stages, "valid")
  ]
  assert np.concatenate(saved).mean() == pytest.approx(measured[best], rel=1e-5)
  _, table, beside = results.state(path)
  assert beside["best"]["step"] == best
  last = {k.removeprefix("params/"): v for k, v in table.items()}
  saved = results.model(path)
  assert any(saved[name].tobytes() != last[name].tobytes() for name in saved)


def test_the_last_step_is_saved_if_requested(stages, tmp_path):
  log = run_sft(stages, tmp_path, "--sft.select_by=last", "--run.save_every=0")
  assert log == results.metrics(stages["sft"])
  assert "selected_step" not in results.summary(tmp_path)
  assert "valid_loss" in results.summary(tmp_path)
  _, table, _ = results.state(tmp_path)
  results.assert_same_arrays(
    results.model(tmp_path),
    {
      k.removeprefix("params/"): v
      for k, v in table.items()
      if k.startswith("params/")
    },
  )


def test_a_reward_model_chooses_the_step_by_its_scores(stages, tmp_path):
  log = run_sft(
    stages,
    tmp_path,
    f"--sft.reward_model={stages['reward']}",
    "--sft.select_prompts=4",
    "--run.save_every=4",
    "--run.keep=99",
  )
  scores = {r["step"]: r["valid_rm_score"] for r in log if "valid_loss" in r}
  best = max(scores, key=lambda step: scores[step])
  summary = results.summary(tmp_path)
  assert (summary["selected_step"], summary["selected_by"]) == (
    best,
    "valid_rm_score",
  )
  assert checkpoints.load_model_info(tmp_path)["step"] == best
  assert len(set(scores.values())) > 1
  assert best in results.steps(tmp_path)
  table = results.arrays(tmp_path / "checkpoints" / str(best))
  results.assert_same_arrays(
    results.model(tmp_path),
    {
      k.removeprefix("params/"): v
      for k, v in table.items()
      if k.startswith("params/")
    },
  )


@pytest.mark.parametrize("pack", [True, False])
def test_a_step_has_about_batch_size_demonstrations(pack, stages, tmp_path):
  flags = stages.flags("sft")
  if pack:
    log = results.metrics(stages["sft"])
    assert "--sft.epochs=8" in flags
  else:
    log = run_sft(stages, tmp_path, "--sft.pack=false")
  updates = log[-1]["step"]
  per_step = 24 * 8 / updates
  assert 6 <= per_step <= 10
  assert pack or per_step == 8
  # One evaluation an epoch, and the last step.
  evaluated = [r["step"] for r in log if "valid_loss" in r]
  assert evaluated == [round(updates / 8 * (i + 1)) for i in range(8)]


def test_policy_init_adds_pretraining_rows_to_the_demonstrations(stages):
  """An epoch still has all demonstrations and the same number of steps."""
  alone = results.metrics(stages["sft"])[-1]["step"] / 8
  mixed = results.metrics(stages["policy_init"])[-1]["step"] / 6
  assert alone == mixed


def test_pretraining_learns(stages):
  log = results.metrics(stages["pretrain"])
  losses = [r["loss"] for r in log if "loss" in r]
  assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
  assert [r["step"] for r in log if "loss" in r] == list(range(1, 31))
  assert [r["step"] for r in log if "valid_loss" in r] == [6, 12, 18, 24, 30]


def test_selection_by_reward_needs_a_reward_model(stages, tmp_path):
  done = stages.run(
    "sft",
    *stages.flags("sft"),
    "--sft.select_by=reward",
    f"--workdir={tmp_path / 'run'}",
  )
  assert (done.status, done.out) == (2, "")
  assert "--sft.reward_model=DIR" in done.err
  assert not results.snapshot(tmp_path / "run")


@pytest.mark.parametrize(
  ("select", "by_reward", "valid", "code"),
  [
    ("reward", False, 5, "no_reward_model"),
    ("reward", True, 0, "no_validation"),
    ("loss", False, 0, "no_validation"),
  ],
)
def test_an_explicit_choice_that_cannot_be_made_is_refused(
  select, by_reward, valid, code
):
  section = configs.Sft(select_by=select)
  with pytest.raises(UserError) as caught:
    sft.choose_selection(section, "sft", by_reward, valid)
  assert (caught.value.code, caught.value.field) == (code, "sft.select_by")


def test_without_validation_records_the_last_step_is_saved_with_a_note(capsys):
  chosen = {
    (select, valid): sft.choose_selection(
      configs.Sft(select_by=select), "sft", by_reward, valid
    )
    for select, by_reward, valid in (
      ("auto", False, 3), ("loss", False, 3), ("last", False, 0),
    )
  }  # fmt: skip
  assert chosen == {
    ("auto", 3): "loss",
    ("loss", 3): "loss",
    ("last", 0): "last",
  }
  assert capsys.readouterr().err == ""
  assert sft.choose_selection(configs.Sft(), "sft", True, 3) == "reward"
  assert sft.choose_selection(configs.Sft(), "sft", False, 0) == "last"
  assert "no validation records" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("measure", "measures", "fits"),
  [
    (None, [], True),
    ("valid_loss", ["valid_loss"], True),
    ("valid_loss", [], False),
    ("valid_rm_score", ["valid_loss"], False),
    ("reward", ["valid_loss", "valid_rm_score"], False),
  ],
)
def test_the_best_step_is_saved_by_its_measure(measure, measures, fits):
  run = configs.Run(keep_best=measure)
  if fits:
    supervised.require_measured(run, measures)
    return
  with pytest.raises(UserError) as caught:
    supervised.require_measured(run, measures)
  error = caught.value
  assert (error.code, error.field) == ("no_such_measure", "run.keep_best")


def test_the_share_of_pretraining_data_is_shown_and_logged(stages):
  log = results.metrics(stages["policy_init"])
  rows = [r["pretraining_row_share"] for r in log if "loss" in r]
  assert rows[-1] == pytest.approx(0.2, abs=0.05)
  assert (
    rows[-1] == results.summary(stages["policy_init"])["pretraining_row_share"]
  )
  assert all(0 < r["pretraining_token_share"] < 1 for r in log if "loss" in r)
