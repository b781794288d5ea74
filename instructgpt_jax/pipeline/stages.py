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
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import checks
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import processes
from instructgpt_jax.errors import UserError, naming_field
from instructgpt_jax.evaluation.tasks import validation
from instructgpt_jax.pipeline import evaluation, rankings
from instructgpt_jax.report import page
from instructgpt_jax.runs import claims, files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.training import documents as documents_lib
from instructgpt_jax.training import (
  fingerprint,
  inheritance,
  inputs,
  mixed_sources,
  ppo,
  pretrain,
  reward,
  sft,
  stage_model,
)
from instructgpt_jax.training import rankings as rankings_lib
from instructgpt_jax.world import write

SECONDS = "seconds.json"
SOURCES = "sources.json"  # the fingerprint of what the pipeline reads
WORLD = "world"
_OWN_STARTS = ("base", "policy_init")  # of reward models
_PUBLIC = "reward_init.comparisons"
_SOURCES = ("demonstrations", "comparisons", "prompts", "pretraining")

E = TypeVar("E", bound=configs.Experiment)


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """A pipeline's config and the directories of its stages.

  `config.data` names real files, the world's or the user's. `valid` has
  the number of validation records of each source.
  """

  config: configs.PipelineExperiment
  directory: str
  has_gold: bool
  valid: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def stage_dir(self, name: str) -> str:
    """Returns the workdir of a stage."""
    return str(pathlib.Path(self.directory) / name)

  def with_sources(self, **sources: str) -> configs.Data:
    """Returns the data section with other sources."""
    return dataclasses.replace(self.config.data, **sources)

  def stage_config(self, kind: type[E], init_from: str, **sections: Any) -> E:
    """Builds a stage's config; the stage starts from directory `init_from`."""
    config = self.config
    shared = dict(
      seed=config.seed,
      init_from=init_from,
      model=config.model,
      tokenizer=config.tokenizer,
      data=config.data,
      mesh=config.mesh,
      processes=config.processes,
      run=config.run,
    )
    experiment = kind(**(shared | sections))
    return dataclasses.replace(experiment, run=self._run_settings(experiment))

  def _run_settings(self, experiment: configs.Experiment) -> configs.Run:
    """Leaves `keep_best` out where a stage does not measure it."""
    run = self.config.run
    measured: list[str] = []
    if isinstance(experiment, configs.PpoExperiment):
      measured = ["reward", *experiment.ppo.held_out_metrics]
    elif isinstance(experiment, configs.PretrainExperiment):
      measured = ["valid_loss"] * bool(self.valid.get("data.pretraining"))
    elif isinstance(experiment, configs.SftExperiment):
      measured = ["valid_loss"] * bool(self.valid.get("data.demonstrations"))
      if experiment.sft.reward_model:
        measured.append("valid_rm_score")
    if run.keep_best in measured:
      return run
    return dataclasses.replace(run, keep_best=None)

  def run_stage(
    self,
    name: str,
    experiment: str,
    config: E,
    run: Callable[[E, str], None],
  ) -> None:
    """Runs a stage in its directory, as the stage's own command would."""
    directory = self.stage_dir(name)
    with self.record_time(name):
      config = inheritance.inherit_architecture(config)
      values = flags.config_to_dict(config)
      with claims.claim(directory, experiment, values):
        run(config, directory)

  @contextmanager
  def record_time(self, name: str) -> Iterator[None]:
    """Adds up the wall time of a stage over calls, in seconds.json.

    A stage that a user error ends before it has made anything does not count.
    """
    began, counts = time.monotonic(), True
    try:
      yield
    except UserError:
      counts = os.path.isdir(self.stage_dir(name))
      raise
    finally:
      if counts:
        self._add_seconds(name, time.monotonic() - began)

  def _add_seconds(self, name: str, spent: float) -> None:
    path = pathlib.Path(self.directory) / SECONDS
    seconds = files.read_json(path) if path.exists() else {}
    # The time of a skipped stage is negligible.
    if name not in seconds or spent > 1:
      seconds[name] = seconds.get(name, 0.0) + spent
      files.write_json_atomic(path, seconds)


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
  start = _read_starting_point(config)
  reward_start = _open_reward_start(config)
  checks.check_pipeline(
    dataclasses.replace(config, data=start.data), start.context
  )
  pipeline = _check_sources(_make_pipeline(config, directory), start)

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
  if pipeline.has_gold:
    final = _run_labeling_rounds(pipeline, base)
  else:
    rankings.split_for_judge(
      pipeline.config,
      pipeline.stage_dir("rankings"),
      stage_model.open_stage(pipeline.stage_dir("policy_init")).tokenizer,
    )
    processes.barrier("rankings")
    _run_reward(
      pipeline,
      base,
      "reward",
      rankings.reward_rankings_path(pipeline.stage_dir("rankings")),
    )
    _run_reward(
      pipeline,
      base,
      "judge",
      rankings.judge_rankings_path(pipeline.stage_dir("rankings")),
    )
    final = "reward"
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
  with pipeline.record_time("evaluate"):
    results = evaluation.evaluate(
      pipeline.config,
      pipeline.directory,
      {
        "base": base,
        **{n: pipeline.stage_dir(n) for n in ("policy_init", "sft", "ppo",
                                           "ppo_ptx")},
        "reward": pipeline.stage_dir(final),
      },
      has_gold=pipeline.has_gold,
    )  # fmt: skip
  results["seconds"] = files.read_json(pathlib.Path(directory) / SECONDS)
  results["sources"] = mixed_sources.read_figures(
    {path.name: path for path in sorted(pathlib.Path(directory).iterdir())}
  )
  path = page.write_report(results, directory)
  if processes.is_main_process():
    print(page.terminal_table(results))
    print(f"report: {path}")
  files.mark_complete(directory, {"report": str(path)})


def _make_pipeline(
  config: configs.PipelineExperiment, directory: str
) -> Pipeline:
  """Uses the user's data; without any, writes the world's."""
  if not config.until:
    evaluation.read_tasks(config)  # An error comes before the training.
  sources = [s for s in _SOURCES if getattr(config.data, s)]
  if sources:
    missing = [s for s in _SOURCES if s not in sources]
    if missing:
      raise UserError(
        f"is missing; --data.{sources[0]} needs all sources",
        field=f"data.{missing[0]}",
        fix="give all four sources, or none for the embedded world",
        code="missing_source",
      )
    if not config.until:
      inputs.require_evaluation(config.data, config.evaluation)
      documents_lib.held_out_split(
        documents_lib.open_documents(config.data, tell=False),
        config.evaluation.split,
      )
    return Pipeline(config, directory, has_gold=False)
  pipeline = Pipeline(config, directory, has_gold=True)
  world_dir = pipeline.stage_dir(WORLD)
  paths = write.world_files(world_dir)
  if not pathlib.Path(paths.world).exists():
    log_line("writing the world")
    with pipeline.record_time("world"):
      write.write_world(
        world_dir, seed=config.seed, **dataclasses.asdict(config.world)
      )
  processes.barrier("world")
  data = pipeline.with_sources(
    demonstrations=paths.demonstrations,
    prompts=paths.prompts,
    pretraining=paths.pretraining,
  )
  config = dataclasses.replace(config, data=data)
  if config.world.public_comparisons and not config.reward_init.comparisons:
    reward_init = dataclasses.replace(
      config.reward_init, comparisons=paths.public_comparisons
    )
    config = dataclasses.replace(config, reward_init=reward_init)
  return dataclasses.replace(pipeline, config=config)


class _StartingPoint(NamedTuple):
  """Settings that all stages inherit from `init_from`, or else their own."""

  data: configs.Data
  tokenizer: Tokenizer | None  # None: one is trained
  context: int


def _read_starting_point(config: configs.PipelineExperiment) -> _StartingPoint:
  if not config.init_from:
    return _StartingPoint(config.data, None, config.model.max_seq_len)
  stage = stage_model.open_stage(
    config.init_from, kind=stage_model.LANGUAGE, field="init_from", run=config
  )
  data = inheritance.inherited_data(config.data, stage)
  return _StartingPoint(data, stage.tokenizer, stage.model_config.max_seq_len)


def _open_reward_start(
  config: configs.PipelineExperiment,
) -> stage_model.Stage | None:
  """Opens the model of another run that reward models start from, if any."""
  if config.reward.init_from in _OWN_STARTS:
    return None
  return stage_model.open_stage(
    config.reward.init_from,
    kind=stage_model.LANGUAGE,
    field="reward.init_from",
    run=config,
  )


def _check_sources(pipeline: Pipeline, start: _StartingPoint) -> Pipeline:
  """Reads every source, before anything is trained on one of them.

  Args:
    pipeline: names the sources.
    start: its limits count, and its chat template may refuse a conversation.

  Raises:
    UserError: a source cannot be read, differs from an earlier call's, or lacks
      the validation records that a setting needs.
  """
  config, directory = pipeline.config, pipeline.directory
  data = dataclasses.replace(
    config.data,
    **{name: getattr(start.data, name) for name in inheritance.INHERITED},
  )
  tokenizer = start.tokenizer
  documents = documents_lib.open_documents(data)
  splits = {
    "data.demonstrations": inputs.demonstrations(data, tokenizer),
    "data.prompts": inputs.prompts(data, tokenizer),
  }
  if data.comparisons:
    splits["data.comparisons"] = inputs.rankings(data, tokenizer)
  public = dataclasses.replace(data, comparisons=config.reward_init.comparisons)
  if public.comparisons:
    with naming_field(_PUBLIC, instead_of=rankings_lib.FIELD):
      splits[_PUBLIC] = inputs.rankings(public, tokenizer)
  valid = {field: len(split.valid) for field, split in splits.items()}
  valid[documents_lib.FIELD] = documents.counts["valid"]
  if config.sft.select_by in ("reward", "loss"):
    sft.choose_selection(
      config.sft,
      "sft",
      has_reward_model=True,
      num_valid=valid["data.demonstrations"],
    )
  unused = {"origin"}
  if "grade" not in (config.reward.margin, config.reward_init.margin):
    unused.add("grades")
  inputs_of_run = {
    field: inputs.fingerprint_records(
      public if field == _PUBLIC else data,
      field.rpartition(".")[2],
      lambda split=split: [_record_contents(part, unused) for part in split],
      **{k: len(v) for k, v in split._asdict().items()},
    )
    for field, split in splits.items()
  }
  inputs_of_run[documents_lib.FIELD] = documents.fingerprint(
    documents.contents(), *documents.counts
  )
  starts = {
    "init_from": config.init_from,
    "reward.init_from": config.reward.init_from,
  }
  for field, path in starts.items():
    if path and path not in _OWN_STARTS:
      inputs_of_run[field] = fingerprint.fingerprint_model(path)
  sources = fingerprint.Fingerprint({}, inputs_of_run)
  path = pathlib.Path(directory) / SOURCES
  if path.exists():
    sources.require_same({fingerprint.KEY: files.read_json(path)}, directory)
  else:
    files.write_json_atomic(path, sources.as_dict())
  return dataclasses.replace(pipeline, valid=valid)


def _record_contents(
  records: Sequence[Any], unused: Collection[str]
) -> list[dict[str, Any]]:
  """Returns the fields of records but for those that the stages do not use."""
  return [
    {name: value for name, value in vars(record).items() if name not in unused}
    for record in records
  ]


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
  )


def _run_reward_init(pipeline: Pipeline, base: str) -> None:
  """Trains what reward models start from, if there are public comparisons."""
  stage = pipeline.config.reward_init
  if stage.comparisons:
    with naming_field(_PUBLIC, instead_of=rankings_lib.FIELD):
      _train_reward_model(
        pipeline,
        "reward_init",
        _reward_start(pipeline, base),
        stage.comparisons,
        stage.section,
        stage.optimizer,
      )


def _run_reward(
  pipeline: Pipeline, base: str, name: str, comparisons: str
) -> None:
  """Trains a reward model on rankings by labelers.

  The judge does not start from public comparisons, so that it shares as little
  as possible with the reward model whose policies it judges.
  """
  config = pipeline.config
  start = _reward_start(pipeline, base)
  if config.reward_init.comparisons and name != "judge":
    start = pipeline.stage_dir("reward_init")
  _train_reward_model(
    pipeline,
    name,
    start,
    comparisons,
    config.reward.section,
    config.reward.optimizer,
  )


def _reward_start(pipeline: Pipeline, base: str) -> str:
  """Returns the directory of the model that `reward.init_from` names."""
  starts = (base, pipeline.stage_dir("policy_init"))
  start = pipeline.config.reward.init_from
  return dict(zip(_OWN_STARTS, starts, strict=True)).get(start, start)


def _train_reward_model(
  pipeline: Pipeline,
  name: str,
  start: str,
  comparisons: str,
  section: configs.Reward,
  optimizer: configs.Optimizer,
) -> None:
  pipeline.run_stage(
    name,
    "reward",
    pipeline.stage_config(
      configs.RewardExperiment,
      start,
      data=pipeline.with_sources(comparisons=comparisons),
      reward=section,
      optimizer=optimizer,
    ),
    reward.train,
  )


def _run_ppo(
  pipeline: Pipeline, name: str, reward_name: str, stage: configs.PpoStage
) -> None:
  config = pipeline.config
  pipeline.run_stage(
    name,
    "ppo_ptx" if stage.ptx_coef else "ppo",
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
  )


def _run_labeling_rounds(pipeline: Pipeline, base: str) -> str:
  """Labels and trains reward models; returns the last reward model's name."""
  config, folder = pipeline.config, pipeline.stage_dir("rankings")
  done: list[str] = []
  name = ""
  for number in range(1, config.labeling.rounds + 1):
    with pipeline.record_time(f"labels_{number}"):
      done.append(
        rankings.label_round(
          config,
          folder,
          number,
          rankings.sampled_models(pipeline.directory, base, number),
          pipeline.stage_dir(WORLD),
        )
      )
    last = number == config.labeling.rounds
    name = "reward" if last else f"reward_{number}"
    _run_reward(pipeline, base, name, ",".join(done))
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
