"""Iterations of PPO: episodes, prompts, averages and KL controller."""

import dataclasses
import json

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.training import (
  inputs,
  ppo,
  ppo_run_state,
  ppo_setup,
  stage_model,
)
from instructgpt_jax.types import PromptBatch
from tests.training import exact, results


def test_invariant_24_the_controller_counts_episodes_and_is_clipped(stages):
  """β of each iteration follows from the KL of the one before."""
  log = results.metrics(stages["ppo"])[1::2]  # two updates an iteration
  betas = [row["kl_coef"] for row in log]
  for before, after, row in zip(betas, betas[1:], log, strict=False):
    error = np.clip(row["kl"] / 2 - 1, -0.2, 0.2)
    assert after == pytest.approx(before * (1 + error * 8 / 20), rel=1e-5)
  assert betas[0] == pytest.approx(0.1)
  _, table, _ = results.state(stages["ppo"])
  error = np.clip(log[-1]["kl"] / 2 - 1, -0.2, 0.2)
  assert table["kl_coef"] == pytest.approx(
    betas[-1] * (1 + error * 8 / 20), rel=1e-5
  )


@pytest.fixture(scope="module")
def every_update(stages, tmp_path_factory):
  """Runs one update per iteration, and saves every state."""
  path = tmp_path_factory.mktemp("every")
  done = stages.run(
    "ppo",
    *stages.flags("ppo"),
    "--ppo.episodes=40",
    "--ppo.minibatch=8",
    "--run.save_every=1",
    "--run.keep=99",
    f"--workdir={path}",
  )
  assert done.status == 0, done.err
  return path, [
    results.arrays(path / "checkpoints" / str(step)) for step in range(1, 6)
  ]


def test_invariant_22_the_average_moves_once_an_update(every_update):
  """The average weights each update's policy by 0.9 ** age."""
  path, tables = every_update
  average = {n.removeprefix("ema/") for n in tables[0] if n.startswith("ema/")}
  assert average == results.model(path).keys()
  for updates, table in enumerate(tables, start=1):
    weights = 0.9 ** np.arange(updates)[::-1]
    for name in average:
      policies = [t[f"policy/params/{name}"] for t in tables[:updates]]
      np.testing.assert_allclose(
        table[f"ema/{name}"],
        np.average(policies, axis=0, weights=weights),
        rtol=1e-5,
        atol=1e-7,
      )
  # The model is the average, not the last update's policy.
  model = results.model(path)
  last = {n: tables[-1][f"ema/{n}"] for n in average}
  results.assert_same_arrays(model, last)
  assert any(
    model[n].tobytes() != tables[-1][f"policy/params/{n}"].tobytes()
    for n in model
  )


def test_episodes_prompts_and_updates_are_counted(every_update, stages):
  path, tables = every_update
  assert [int(t["policy/step"]) for t in tables] == [1, 2, 3, 4, 5]
  summary = results.summary(path)
  assert (summary["updates"], summary["episodes"]) == (5, 40)
  for name, updates, episodes in (("ppo", 24, 96), ("ppo_ptx", 32, 64)):
    summary = results.summary(stages[name])
    assert (summary["updates"], summary["episodes"]) == (updates, episodes)
    log = results.metrics(stages[name])
    assert [row["step"] for row in log] == list(range(1, updates + 1))
    assert log[-1]["episodes"] == episodes
    assert checkpoints.load_model_info(stages[name])["step"] == updates


REQUIRED = {
  "reward", "kl", "kl_per_token", "entropy", "clip_fraction", "approx_kl",
  "explained_variance", "response_length", "ended", "grad_norm_ppo",
  "grad_norm_value", "grad_norm",
}  # fmt: skip
SPEEDS = {"tokens_per_second", "episodes_per_second"}


def test_every_update_logs_the_training_diagnostics(stages):
  for name, more in (
    ("ppo", set()),
    ("ppo_ptx", {"grad_norm_ptx", "grad_angle", "ptx_loss"}),
  ):
    text = (stages[name] / "metrics.jsonl").read_text()
    for line in text.splitlines():
      row = json.loads(line)
      assert row.keys() >= REQUIRED | SPEEDS | more
      assert all(np.isfinite(list(row.values())))


def test_invariant_21_both_gradients_make_one_update(stages):
  """The logged angle gives |a + b|², the norm of the sum."""
  for row in results.metrics(stages["ppo_ptx"]):
    a, b = row["grad_norm_ppo"], row["grad_norm_ptx"]
    cosine = np.cos(np.radians(row["grad_angle"]))
    assert row["grad_norm"] ** 2 == pytest.approx(
      a * a + b * b + 2 * a * b * cosine, rel=1e-3
    )


def test_invariant_09_each_episode_has_a_separate_key():
  """A repeated prompt gets a new response; all episodes differ."""
  batch = PromptBatch(
    tokens=np.zeros((8, 3), np.int32),
    mask=np.ones((8, 3), bool),
    ids=np.array([3, 1, 0, 3, 2, 2, 1, -1], np.int32),
  )
  ids = np.concatenate(
    [
      ppo.number_episodes(batch, iteration, 8, shard=0).ids
      for iteration in range(5)
    ]
  )
  np.testing.assert_array_equal(ids, np.arange(40))


def test_every_episode_is_in_one_update_of_each_epoch():
  section = configs.Ppo(rollout_batch=12, minibatch=4, inner_epochs=3)
  orders = []
  for iteration in range(2):
    rows = ppo.minibatch_indices(7, iteration, section)
    assert [len(r) for r in rows] == [4] * 9
    for epoch in range(3):
      order = np.concatenate(rows[3 * epoch : 3 * epoch + 3])
      np.testing.assert_array_equal(np.sort(order), np.arange(12))
      orders.append(tuple(order))
  assert len(set(orders)) == 6
  again = np.concatenate(ppo.minibatch_indices(7, 1, section)[:3])
  assert tuple(again) == orders[3]


def test_rollouts_start_from_the_prompts_of_the_file(stages):
  stage = stage_model.open_stage(str(stages["sft"]))
  settings = configs.PpoExperiment(
    model=stage.model_config,
    data=dataclasses.replace(
      stage.data, prompts=str(stages.data / "prompts.jsonl")
    ),
    ppo=configs.Ppo(rollout_batch=20),
  )
  mesh = mesh_lib.make_mesh(settings.mesh)
  prompts = inputs.prompts(settings.data, stage.tokenizer).train
  batches, *_ = ppo_setup.prompt_batches(
    settings, prompts, stage.tokenizer, mesh
  )
  batch = next(batches)
  sft = exact.Finished(stages["sft"])
  records = map(
    json.loads, (stages.data / "prompts.jsonl").read_text().splitlines()
  )
  expected = {
    tuple(sft.encode(r["prompt"], "")[0])
    for r in records
    if r["split"] == "train"
  }
  assert {
    tuple(row[real]) for row, real in zip(batch.tokens, batch.mask, strict=True)
  } == expected
  # Left-padded, and no wider than prompt and response may be together.
  assert batch.mask[:, -1].all()
  width = batch.tokens.shape[1]
  assert max(map(len, expected)) <= width <= 24 - 6


def test_other_settings(stages, tmp_path):
  """Uses a separate value network, a fixed β and an end-of-text penalty."""
  done = stages.run(
    "ppo",
    *(f for f in stages.flags("ppo") if "kl_target" not in f),
    "--ppo.value_from_reward=false",
    "--ppo.episodes=24",
    "--ppo.whiten_rewards=true",
    "--ppo.bootstrap_truncated=true",
    "--ppo.eos_penalty=1",
    f"--workdir={tmp_path}",
  )
  assert done.status == 0, done.err
  log = results.metrics(tmp_path)
  assert {row["kl_coef"] for row in log} == {float(np.float32(0.1))}
  row = log[0]
  same = results.metrics(stages["ppo"])[0]
  assert row["reward"] == pytest.approx(same["reward"], abs=1e-6)
  assert row["return"] == pytest.approx(
    same["return"] - (1 - same["ended"]), abs=1e-5
  )
  assert row["value_loss"] != same["value_loss"]


def test_snapshots_are_the_policy_during_training(stages, tmp_path):
  """Every other iteration saves its policy, not averaged, as a stage."""
  done = stages.run(
    "ppo",
    *stages.flags("ppo"),
    "--ppo.episodes=32",
    "--ppo.snapshot_every=2",
    "--run.save_every=1",
    "--run.keep=99",
    f"--workdir={tmp_path}",
  )
  assert done.status == 0, done.err
  folders = sorted((tmp_path / ppo_run_state.SNAPSHOTS).iterdir())
  assert [f.name for f in folders] == ["000002", "000004"]
  for folder in folders:
    step = 2 * int(folder.name)  # an iteration has two updates
    table = results.arrays(tmp_path / "checkpoints" / str(step))
    saved = results.model(folder)
    for name, array in saved.items():
      np.testing.assert_array_equal(array, table[f"policy/params/{name}"])
    assert stage_model.open_stage(str(folder)).kind == stage_model.LANGUAGE
  averaged = results.model(tmp_path)
  last = results.model(folders[-1])
  assert any((averaged[n] != last[n]).any() for n in last)
