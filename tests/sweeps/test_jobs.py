"""Commands of jobs, and their order by dependencies."""

import sys

import pytest

from instructgpt_jax.sweeps import jobs
from instructgpt_jax.sweeps.jobs import Job


def names(result):
  return [job.name for job in result]


def test_a_command_has_the_workdir_and_every_flag():
  job = Job("a/b", "ppo", {"ppo.kl_coef": 0.02, "run.tensorboard": False,
                           "seed": 1, "init_from": "my runs/x"})  # fmt: skip
  command = job.command("root")
  assert command == [
    sys.executable, "-m", "experiments.ppo", "--workdir=root/a/b",
    "--ppo.kl_coef=0.02", "--run.tensorboard=false", "--seed=1",
    "--init_from=my runs/x",
  ]  # fmt: skip
  assert jobs.shell_line(command) == (
    "python -m experiments.ppo --workdir=root/a/b --ppo.kl_coef=0.02"
    " --run.tensorboard=false --seed=1 '--init_from=my runs/x'"
  )


@pytest.mark.parametrize("name", ["", "a//b", "../a", ".lock", "logs/a", "/a"])
def test_names_that_are_no_directory_of_a_job(name):
  with pytest.raises(ValueError):
    Job(name, "ppo", {})


def test_needs_come_first_and_order_is_preserved():
  result = jobs.order_jobs(
    [
      Job("c", "x", {}, ("a", "b")),
      Job("d", "x", {}),
      Job("b", "x", {}, ("a",)),
      Job("a", "x", {}),
    ]
  )
  assert names(result) == ["a", "b", "c", "d"]


def test_the_same_job_twice_is_one_with_the_needs_of_both():
  result = jobs.order_jobs(
    [
      Job("a", "x", {}),
      Job("b", "x", {}),
      Job("c", "x", {"seed": 1}, ("a",)),
      Job("c", "x", {"seed": 1}, ("b",)),
    ]
  )
  assert names(result) == ["a", "b", "c"]
  assert result[-1].needs == ("a", "b")


@pytest.mark.parametrize(
  "jobs_list, words",
  [
    ([Job("a", "x", {}), Job("a", "x", {"seed": 1})], "different commands"),
    ([Job("a", "x", {}, ("b",))], "'b', which is not a job"),
    (
      [Job("a", "x", {}, ("b",)), Job("b", "x", {}, ("a",))],
      "need each other",
    ),
  ],
)
def test_jobs_that_contradict_each_other(jobs_list, words):
  with pytest.raises(ValueError, match=words):
    jobs.order_jobs(jobs_list)
