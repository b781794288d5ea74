"""Commands of jobs, and the order that their needs allow."""

import sys

import pytest

from instructgpt_jax.sweeps import jobs
from instructgpt_jax.sweeps.jobs import Job


def names(found):
  return [job.name for job in found]


def test_a_command_has_the_workdir_and_every_flag():
  job = Job("a/b", "ppo", {"ppo.kl_coef": 0.02, "run.tensorboard": False,
                           "seed": 1, "init_from": "my runs/x"})  # fmt: skip
  command = job.command("root")
  assert command == [
    sys.executable, "-m", "experiments.ppo", "--workdir=root/a/b",
    "--ppo.kl_coef=0.02", "--run.tensorboard=false", "--seed=1",
    "--init_from=my runs/x",
  ]  # fmt: skip
  assert jobs.shown(command) == (
    "python -m experiments.ppo --workdir=root/a/b --ppo.kl_coef=0.02"
    " --run.tensorboard=false --seed=1 '--init_from=my runs/x'"
  )


@pytest.mark.parametrize("name", ["", "a//b", "../a", ".lock", "logs/a", "/a"])
def test_names_that_are_no_folder_of_a_job(name):
  with pytest.raises(ValueError):
    Job(name, "ppo", {})


def test_needs_come_first_and_the_given_order_is_kept():
  found = jobs.in_order(
    [
      Job("c", "x", {}, ("a", "b")),
      Job("d", "x", {}),
      Job("b", "x", {}, ("a",)),
      Job("a", "x", {}),
    ]
  )
  assert names(found) == ["a", "b", "c", "d"]


def test_the_same_job_twice_is_one_with_the_needs_of_both():
  found = jobs.in_order(
    [
      Job("a", "x", {}),
      Job("b", "x", {}),
      Job("c", "x", {"seed": 1}, ("a",)),
      Job("c", "x", {"seed": 1}, ("b",)),
    ]
  )
  assert names(found) == ["a", "b", "c"]
  assert found[-1].needs == ("a", "b")


@pytest.mark.parametrize(
  "given, words",
  [
    ([Job("a", "x", {}), Job("a", "x", {"seed": 1})], "different commands"),
    ([Job("a", "x", {}, ("b",))], "'b', which is no job"),
    (
      [Job("a", "x", {}, ("b",)), Job("b", "x", {}, ("a",))],
      "need each other",
    ),
  ],
)
def test_jobs_that_contradict_each_other(given, words):
  with pytest.raises(ValueError, match=words):
    jobs.in_order(given)
