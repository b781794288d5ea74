"""Runs the stages in order, and sets the model that each starts from.

  pretrain → policy_init → reward_init → rankings → reward → sft
  → ppo, ppo_ptx → report

Reward models start from reward_init, if there are public comparisons. On the
embedded world the rankings come from its labelers, in rounds: all rank
samples of the base model and of policy_init; each later one those of an early
PPO policy as well (paper, 3.1). SFT comes after the last reward model, which
chooses its checkpoint (C.1).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from instructgpt_jax import configs
from instructgpt_jax.configs import checks
from instructgpt_jax.data.reading import specs
from instructgpt_jax.distributed import processes
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.tasks import validation
from instructgpt_jax.pipeline import (
  evaluation,
  judge_split,
  preparation,
  rankings,
)
from instructgpt_jax.pipeline.workdir import SECONDS, SOURCES, WORLD, Pipeline
from instructgpt_jax.report import page
from instructgpt_jax.runs import files
from instructgpt_jax.training import (
  inheritance,
  mixed_sources,
  ppo,
  pretrain,
  reward,
  sft,
  stage_model,
)


def run(config: configs.PipelineExperiment, directory: str) -> None:
  """Runs all stages and writes the report.

  Args:
    config: the experiment.
    directory: its workdir; each stage gets a directory in it.
  """
  with _clean_up_on_error(directory):
    _run_stages(config, directory)


@contextmanager
def _clean_up_on_error(directory: str) -> Iterator[None]:
  """Removes the files of a call that fails before the first stage.

  A call with corrected flags can then use the same workdir.
  """
  before = _list_names(directory)
  try:
    yield
  except UserError:
    made = _list_names(directory) - before
    if processes.is_main_process() and made <= {SECONDS, SOURCES, WORLD}:
      for name in made:
        path = pathlib.Path(directory) / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    raise


def _list_names(directory: str) -> set[str]:
  if not os.path.isdir(directory):
    return set()
  return {name for name in os.listdir(directory) if not name.startswith(".")}


def _run_stages(config: configs.PipelineExperiment, directory: str) -> None:
  start = preparation.read_starting_point(config)
  reward_start = preparation.open_reward_start(config)
  checks.check_pipeline(
    dataclasses.replace(config, data=start.data), start.context
  )
  pipeline = preparation.check_sources(
    preparation.find_sources(config, directory), start
  )

  def ends_with(stage: str) -> bool:
    if config.until == stage:
      files.mark_complete(directory, {"until": stage})
    return config.until == stage

  if ends_with("world"):
    return
  base = _run_pretrain(pipeline)
  if reward_start:
    policy = stage_model.open_stage(base, run=config)
    inheritance.require_compatible(
      reward_start,
      policy.tokenizer,
      inheritance.inherited_data(config.data, policy),
      "reward.init_from",
    )
  if ends_with("pretrain"):
    return
  _run_policy_init(pipeline, base)
  if ends_with("policy_init"):
    return
  _run_reward_init(pipeline, base)
  run_reward = _run_labeling_rounds if pipeline.has_gold else _run_user_rankings
  final = run_reward(pipeline, base)
  if ends_with("reward"):
    return
  _run_sft(pipeline, base, final)
  if ends_with("sft"):
    return
  for name, coefficient in (("ppo", 0.0), ("ppo_ptx", config.ppo.ptx_coef)):
    _run_ppo(
      pipeline,
      name,
      final,
      dataclasses.replace(config.ppo, ptx_coef=coefficient),
    )
  _write_report(pipeline, base, final)


def _write_report(pipeline: Pipeline, base: str, reward_name: str) -> None:
  """Evaluates all models, and writes and prints the report.

  Args:
    pipeline: the pipeline, whose stages are complete.
    base: workdir of the base model.
    reward_name: name of the last reward model's stage.
  """
  trained = ("policy_init", "sft", "ppo", "ppo_ptx")
  with pipeline.record_time("evaluate"):
    results = evaluation.evaluate(
      pipeline.config,
      pipeline.directory,
      {
        "base": base,
        **{name: pipeline.stage_dir(name) for name in trained},
        "reward": pipeline.stage_dir(reward_name),
      },
      has_gold=pipeline.has_gold,
    )
  directory = pathlib.Path(pipeline.directory)
  results["seconds"] = files.read_json(directory / SECONDS)
  results["sources"] = mixed_sources.read_figures(
    {path.name: path for path in sorted(directory.iterdir())}
  )
  path = page.write_report(results, pipeline.directory)
  if processes.is_main_process():
    print(page.terminal_table(results))
    print(f"report: {path}")
  files.mark_complete(pipeline.directory, {"report": str(path)})


def _run_pretrain(pipeline: Pipeline) -> str:
  """Trains the base model, or takes `init_from`; returns its directory."""
  config = pipeline.config
  if config.init_from:
    return config.init_from
  experiment = pipeline.stage_config(
    configs.PretrainExperiment,
    "",
    pretrain=config.pretrain.section,
    optimizer=config.pretrain.optimizer,
  )
  # The base model below the adapters is trained without adapters.
  model = dataclasses.replace(experiment.model, lora_rank=None)
  pipeline.run_stage(
    "pretrain",
    "pretrain",
    dataclasses.replace(experiment, model=model),
    validation.with_tasks(pretrain.train, "pretrain"),
    section="pretrain",
  )
  return pipeline.stage_dir("pretrain")


def _run_policy_init(pipeline: Pipeline, base: str) -> None:
  config = pipeline.config
  pipeline.run_stage(
    "policy_init",
    "policy_init",
    pipeline.stage_config(
      configs.SftExperiment,
      base,
      sft=config.policy_init.section,
      optimizer=config.policy_init.optimizer,
    ),
    functools.partial(
      validation.with_tasks(sft.train, "sft"), name="policy_init"
    ),
    section="policy_init",
  )


def _run_sft(pipeline: Pipeline, base: str, reward_name: str) -> None:
  config = pipeline.config
  section = config.sft.section
  if (
    section.select_by in ("auto", "reward")
    and pipeline.valid["data.demonstrations"]
  ):
    section = dataclasses.replace(
      section, reward_model=pipeline.stage_dir(reward_name)
    )
  pipeline.run_stage(
    "sft",
    "sft",
    pipeline.stage_config(
      configs.SftExperiment,
      base,
      sft=section,
      optimizer=config.sft.optimizer,
    ),
    validation.with_tasks(sft.train, "sft"),
    section="sft",
  )


def _run_reward_init(pipeline: Pipeline, base: str) -> None:
  """Trains what reward models start from, if there are public comparisons."""
  stage = pipeline.config.reward_init
  if stage.comparisons:
    _train_reward_model(
      pipeline,
      "reward_init",
      _reward_start(pipeline, base),
      stage.comparisons,
      stage.section,
      stage.optimizer,
    )


def _run_user_rankings(pipeline: Pipeline, base: str) -> str:
  """Trains the reward model and the judge, each on a part of the rankings.

  Returns:
    The name of the reward model's stage.
  """
  directory = pipeline.stage_dir("rankings")
  policy = stage_model.open_stage(pipeline.stage_dir("policy_init"))
  judge_split.write(pipeline.config, directory, policy.tokenizer)
  processes.barrier("rankings")
  for role in (judge_split.REWARD, judge_split.JUDGE):
    _run_reward(
      pipeline,
      base,
      role,
      judge_split.comparisons(pipeline.config, directory, role),
    )
  return judge_split.REWARD


def _run_reward(
  pipeline: Pipeline, base: str, name: str, comparisons: str
) -> None:
  """Trains a reward model on rankings by labelers.

  The judge does not start from public comparisons, so that it shares as little
  as possible with the reward model whose policies it judges.
  """
  config = pipeline.config
  start = _reward_start(pipeline, base)
  if config.reward_init.comparisons and name != judge_split.JUDGE:
    start = pipeline.stage_dir("reward_init")
  _train_reward_model(
    pipeline,
    name,
    start,
    comparisons,
    judge_split.leave_out_known(config.reward.section, comparisons),
    config.reward.optimizer,
  )


def _reward_start(pipeline: Pipeline, base: str) -> str:
  """Returns the directory of the model that `reward.init_from` names."""
  starts = (base, pipeline.stage_dir("policy_init"))
  start = pipeline.config.reward.init_from
  return dict(zip(preparation.OWN_STARTS, starts, strict=True)).get(
    start, start
  )


def _train_reward_model(
  pipeline: Pipeline,
  name: str,
  start: str,
  comparisons: str,
  section: configs.Reward,
  optimizer: configs.Optimizer,
) -> None:
  data = pipeline.with_sources(comparisons=comparisons)
  if pipeline.config.reward.init_from not in preparation.OWN_STARTS:
    data = inheritance.without_architecture(data)
  pipeline.run_stage(
    name,
    "reward",
    pipeline.stage_config(
      configs.RewardExperiment,
      start,
      data=data,
      reward=section,
      optimizer=optimizer,
    ),
    reward.train,
    section="reward_init" if name == "reward_init" else "reward",
  )


def _run_ppo(
  pipeline: Pipeline, name: str, reward_name: str, stage: configs.PpoStage
) -> None:
  config = pipeline.config
  experiment = "ppo_ptx" if stage.ptx_coef else "ppo"
  pipeline.run_stage(
    name,
    experiment,
    pipeline.stage_config(
      configs.PpoExperiment,
      pipeline.stage_dir("policy_init"),
      ppo=dataclasses.replace(
        stage.section, reward_model=pipeline.stage_dir(reward_name)
      ),
      optimizer=config.ppo_ptx.optimizer
      if stage.ptx_coef
      else config.ppo.optimizer,
      value_optimizer=config.ppo.value_optimizer,
    ),
    functools.partial(validation.with_tasks(ppo.train, "ppo"), name=name),
    section=experiment,
  )


def _run_labeling_rounds(pipeline: Pipeline, base: str) -> str:
  """Labels and trains reward models; returns the last reward model's name."""
  config, directory = pipeline.config, pipeline.stage_dir("rankings")
  done: list[str] = []
  name = ""
  for number in range(1, config.labeling.rounds + 1):
    with pipeline.record_time(f"labels_{number}"):
      done.append(
        rankings.label_round(
          config,
          directory,
          number,
          rankings.sampled_models(pipeline.directory, base, number),
          pipeline.stage_dir(WORLD),
        )
      )
    last = number == config.labeling.rounds
    name = "reward" if last else f"reward_{number}"
    _run_reward(pipeline, base, name, specs.join(map(specs.Part, done)))
    if not last:
      probe = f"probe_{number}"
      _run_ppo(
        pipeline,
        probe,
        name,
        # The next labels must cover what the policy writes now, so this short
        # run averages only its newest updates.
        dataclasses.replace(
          config.ppo,
          ptx_coef=0.0,
          episodes=config.labeling.probe_episodes,
          ema_decay=min(config.ppo.ema_decay, 0.5),
        ),
      )
  return name
