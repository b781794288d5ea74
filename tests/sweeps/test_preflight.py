"""What is wrong with any run is reported before the first one starts."""

import os

import pytest

from experiments import sweep as sweep_lib
from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import checks, presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.sweeps import command, preflight
from instructgpt_jax.sweeps.jobs import Job


def checked(root, experiment, *argv):
  """Parses a sweep's command line and checks its runs."""
  parsed = command.parse(
    [f"--experiment={experiment}", "--preset=world", f"--workdir={root}", *argv,
     "--dry_run"],
    sweep_lib.load, "", "experiments",
  )  # fmt: skip
  return command.run(parsed)


@pytest.fixture
def start(tmp_path):
  (tmp_path / "start").mkdir()
  (tmp_path / "demos.jsonl").write_text("{}\n")
  return tmp_path / "start"


@pytest.mark.parametrize(
  "experiment, argv, field, run",
  [
    ("ppo_ptx", ("--ppo.minibatch=4", "--ppo.ptx_ratio=1",
                 "--ppo.ptx_microbatch=4",
                 "--sweep=ppo.rollout_batch=8,9"),
     "ppo.minibatch", "rollout_batch=9"),
    ("ppo_ptx", ("--sweep=ppo.microbatch=0,3",), "ppo.microbatch",
     "microbatch=3"),
    ("ppo_ptx", ("--sweep=ppo.ptx_microbatch=1,7",), "ppo.ptx_microbatch",
     "ptx_microbatch=7"),
    ("reward", ("--sweep=reward.microbatch=0,3", "--reward.batch_size=16"),
     "reward.microbatch", "microbatch=3"),
    ("pretrain", ("--sweep=pretrain.microbatch=0,3",
                  "--pretrain.batch_size=16"),
     "pretrain.microbatch", "microbatch=3"),
    ("pretrain", ("--sweep=pretrain.sequence=0,100000",), "pretrain.sequence",
     "sequence=100000"),
  ],
)  # fmt: skip
def test_batches_and_lengths_of_every_run(
  tmp_path, experiment, argv, field, run
):
  with pytest.raises(UserError) as error:
    checked(tmp_path / "S", experiment, *argv)
  assert error.value.field == field and run in error.value.problem
  assert error.value.code in ("not_a_divisor", "context_too_small")
  assert not (tmp_path / "S").exists()


@pytest.mark.parametrize("kind", [(), ("--search=random", "--objective=x")])
@pytest.mark.parametrize(
  "experiment, argv, field, code",
  [
    ("sft", ("--sweep=init_from=START,NOWHERE",), "init_from", "no_directory"),
    ("sft", ("--init_from=NOWHERE", "--sweep=seed=0,1"), "init_from",
     "no_directory"),
    ("ppo", ("--init_from=START", "--data.prompts=START/../demos.jsonl",
             "--sweep=ppo.reward_model=START,NOWHERE"),
     "ppo.reward_model", "no_directory"),
    ("sft", ("--init_from=START", "--sft.reward_model=NOWHERE",
             "--sweep=seed=0,1"), "sft.reward_model", "no_directory"),
    ("sft", ("--init_from=START",
             "--sweep=data.demonstrations=START/../demos.jsonl,NOWHERE.jsonl"),
     "data.demonstrations", "no_such_file"),
    ("sft", ("--tokenizer.path=NOWHERE", "--sweep=seed=0,1"),
     "tokenizer.path", "no_file"),
  ],
)  # fmt: skip
def test_files_of_every_run(
  tmp_path, start, experiment, argv, field, code, kind
):
  argv = [
    text.replace("START", str(start)).replace(
      "NOWHERE", str(tmp_path / "nowhere")
    )
    for text in argv
  ]
  with pytest.raises(UserError) as error:
    checked(tmp_path / "S", experiment, *argv, *kind)
  assert (error.value.field, error.value.code) == (field, code)
  assert error.value.file.startswith(str(tmp_path / "nowhere"))


def test_files_that_the_sweep_makes_may_be_missing(tmp_path, capsys):
  assert checked(tmp_path / "S", "ppo", "--sweep=seed=0,1") == 0
  made = tmp_path / "S" / "shared" / "policy_init"
  argv = (f"--init_from={made}", "--sweep=seed=0,1")
  assert checked(tmp_path / "S", "sft", *argv) == 0


def test_a_run_that_is_complete_is_not_checked_again(tmp_path):
  root = str(tmp_path)
  one = Job("seed=0", "sft", {"init_from": str(tmp_path.parent / "gone")})
  whole = presets.sft("tiny")
  with pytest.raises(UserError):
    preflight.check_runs([one], whole, root)
  (tmp_path / "seed=0").mkdir()
  (tmp_path / "seed=0" / "complete.json").write_text("{}")
  preflight.check_runs([one], whole, root)


def test_a_start_model_overrides_the_context_length():
  long = configs.Data(max_prompt_tokens=500, max_response_tokens=500)
  model = configs.Model(max_seq_len=64, d_model=16, num_heads=1)
  alone = configs.SftExperiment(data=long, model=model)
  with pytest.raises(UserError) as error:
    checks.check_pipeline_lengths(alone)
  assert error.value.code == "context_too_small"
  checks.check_pipeline_lengths(
    configs.SftExperiment(data=long, model=model, init_from="x")
  )


def test_fingerprints_are_of_data_and_models_outside_the_sweep(tmp_path, start):
  root, data = str(tmp_path / "S"), str(tmp_path / "demos.jsonl")
  (start / "config.json").write_text("{}")
  whole = flags.replace(
    presets.sft("tiny"), {"data.demonstrations": data, "init_from": str(start)}
  )
  jobs = [
    Job(f"seed={seed}", "sft", {"seed": seed, "sft.reward_model": f"{root}/rm"})
    for seed in (0, 1)
  ]

  def fingerprints():
    return preflight.fingerprints(jobs, whole, root)

  first = fingerprints()
  assert first.keys() == {f"data.demonstrations={data}", f"init_from={start}"}
  (start / "config.json").write_text('{"a": 1}')
  changed = {
    key for key, value in fingerprints().items() if value != first[key]
  }
  assert changed == {f"init_from={start}"}
  with open(data, "a", encoding="utf-8") as file:
    file.write("{}\n")
  assert not first.items() & fingerprints().items()
  # A run that is complete reads nothing any more.
  for job in jobs:
    (tmp_path / "S" / job.name).mkdir(parents=True)
    (tmp_path / "S" / job.name / "complete.json").write_text("{}")
  os.remove(data)
  assert fingerprints() == {}
