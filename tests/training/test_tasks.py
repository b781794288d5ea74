"""Public tasks during pretraining, SFT and PPO."""

import json
import types

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.language_model import TextModel
from instructgpt_jax.evaluation.tasks import answers, registry, validation
from instructgpt_jax.training import ppo_held_out, task_validation
from tests.training import results

NAME = "valid_task/lambada"
ITEMS = 7


@pytest.fixture(scope="module")
def passages(stages, tmp_path_factory):
  """Writes passages of the training's words; returns the path."""
  path = tmp_path_factory.mktemp("tasks") / "lambada.jsonl"
  records = map(
    json.loads, (stages.data / "demonstrations.jsonl").read_text().splitlines()
  )
  texts = {f"{r['prompt']} {r['completion']}" for r in records}
  path.write_text(
    "".join(json.dumps({"text": text}) + "\n" for text in sorted(texts))
  )
  return path


def flags(stage, passages):
  return (
    f"--{stage}.tasks=lambada={passages}",
    f"--{stage}.tasks_every=5",
    f"--{stage}.task_items={ITEMS}",
  )


@pytest.mark.parametrize("stage", ["pretrain", "sft", "ppo"])
def test_tasks_are_measured_at_each_interval(stage, stages, passages, tmp_path):
  select = ["--sft.select_by=last"] if stage == "sft" else []
  done = stages.run(
    stage,
    *stages.flags(stage),
    *flags(stage, passages),
    *select,
    f"--workdir={tmp_path}",
  )
  assert done.status == 0, done.err
  rows = results.metrics(tmp_path)
  values = {row["step"]: row[NAME] for row in rows if NAME in row}
  total = rows[-1]["step"]
  every = 5 * (2 if stage == "ppo" else 1)  # PPO has 2 updates an iteration
  assert sorted(values) == sorted({*range(0, total + 1, every), total})
  asked = registry.load("lambada", str(passages), count=ITEMS, seed=0)
  rows = answers.answer_tasks(TextModel(str(tmp_path)), [asked])["lambada"]
  scores = [row.main_score for row in rows]
  assert values[total] == pytest.approx(np.mean(scores))

  def losses(path):
    return [row["loss"] for row in results.metrics(path) if "loss" in row]

  assert losses(tmp_path) == losses(stages[stage])


def test_a_missing_file_is_an_error(stages, tmp_path):
  done = stages.run(
    "sft",
    *stages.flags("sft"),
    *flags("sft", tmp_path / "none.jsonl"),
    f"--workdir={tmp_path / 'run'}",
  )
  assert done.status == 2 and "none.jsonl" in done.err


def test_a_list_is_checked_before_the_training():
  for tasks, code in (("lamda=x", "bad_task"), ("realtoxicity=x", "bad_task")):
    with pytest.raises(UserError) as caught:
      validation.make_measure(configs.Sft(tasks=tasks), 0, "sft.tasks")
    assert (caught.value.code, caught.value.field) == (code, "sft.tasks")


@pytest.mark.parametrize(
  ("every", "due"), [(None, [0, 7]), (3, [0, 3, 6, 7]), (7, [0, 7])]
)
def test_when_tasks_are_due(every, due):
  loop = task_validation.TaskLoop(lambda params: {}, every)
  assert [n for n in range(8) if loop.is_due(n, last=n == 7)] == due


def test_ppo_logs_tasks_after_the_iterations_that_are_due(tmp_path):
  config = configs.PpoExperiment()
  run = types.SimpleNamespace(config=config, directory=str(tmp_path))
  trained = types.SimpleNamespace(ema={"w": 2.0}, policy=None)
  rows = []
  writer = types.SimpleNamespace(
    write=lambda step, metrics: rows.append((step, metrics))
  )
  loops = ppo_held_out.Loops(
    None, None, task_validation.TaskLoop(lambda params: {NAME: params["w"]}, 3)
  )
  with ppo_held_out.Observer(
    run, loops, writer, lambda state: None, resume_step=0
  ) as observer:
    for iteration in range(6):
      observer.observe(
        trained, ppo_held_out.Evaluated(), iteration, last=iteration == 5
      )
  updates = config.ppo.updates_per_iteration
  # The policy that is measured is the one that is saved: the average.
  assert rows == [(i * updates, {NAME: 2.0}) for i in (0, 3, 5)]


def test_a_program_without_tasks_refuses_a_list():
  def make(section):
    return task_validation.make_loop(section, None, None, None, None, None)

  assert make(configs.Ppo()) is None
  with pytest.raises(ValueError, match="no function"):
    make(configs.Ppo(tasks="lambada=x"))
