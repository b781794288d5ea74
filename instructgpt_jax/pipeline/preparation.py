"""Finds what a pipeline starts from and reads, and checks it before training.

An error comes before the first stage, and not hours after it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.data import curated_source
from instructgpt_jax.data.curation import drops
from instructgpt_jax.data.curation import splits as splits_lib
from instructgpt_jax.data.prepared import layout
from instructgpt_jax.data.records import Ranking
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import processes
from instructgpt_jax.errors import UserError, naming_fields
from instructgpt_jax.pipeline import evaluation, judge_split
from instructgpt_jax.pipeline.workdir import (
  SOURCES,
  STAGE_FIELDS,
  WORLD,
  Pipeline,
)
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.training import documents as documents_lib
from instructgpt_jax.training import (
  fingerprint,
  inheritance,
  inputs,
  sft,
  stage_model,
)
from instructgpt_jax.training import rankings as rankings_lib
from instructgpt_jax.world import labelers, write

OWN_STARTS = ("base", "policy_init")  # of reward models
PUBLIC = "reward_init.comparisons"
_BEFORE_RANKINGS = ("world", "pretrain", "policy_init")  # values of `until`
_SOURCES = ("demonstrations", "comparisons", "prompts", "pretraining")


def find_sources(
  config: configs.PipelineExperiment, directory: str
) -> Pipeline:
  """Uses the user's data; without any, writes the world's.

  Raises:
    UserError: `missing_source`, some sources are given and others are not;
      `prepared_rankings`, a source is prepared whose splits the rankings need;
      or a file of tasks or documents cannot be evaluated.
  """
  if not config.until:
    evaluation.read_tasks(config)  # An error comes before the training.
  _require_files(config)
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


class StartingPoint(NamedTuple):
  """Settings that all stages inherit from `init_from`, or else their own."""

  data: configs.Data
  tokenizer: Tokenizer | None  # None: one is trained
  context: int


def read_starting_point(config: configs.PipelineExperiment) -> StartingPoint:
  """Reads the settings of `init_from`, or takes the config's.

  Raises:
    UserError: `init_from` is not a language model.
  """
  if not config.init_from:
    return StartingPoint(config.data, None, config.model.max_seq_len)
  stage = stage_model.open_stage(
    config.init_from, kind=stage_model.LANGUAGE, field="init_from", run=config
  )
  data = inheritance.inherited_data(config.data, stage)
  return StartingPoint(data, stage.tokenizer, stage.model_config.max_seq_len)


def open_reward_start(
  config: configs.PipelineExperiment,
) -> stage_model.Stage | None:
  """Opens the model of another run that reward models start from, if any.

  Raises:
    UserError: `reward.init_from` is not a language model.
  """
  if config.reward.init_from in OWN_STARTS:
    return None
  return stage_model.open_stage(
    config.reward.init_from,
    kind=stage_model.LANGUAGE,
    field="reward.init_from",
    run=config,
  )


def check_sources(pipeline: Pipeline, start: StartingPoint) -> Pipeline:
  """Reads every source, before anything is trained on one of them.

  Args:
    pipeline: names the sources.
    start: its limits count, and its chat template may refuse a conversation.

  Raises:
    UserError: a source cannot be read, differs from an earlier call's, or lacks
      the validation records that a setting needs; `held_out_prompt`, a public
      comparison's prompt is held out in the rankings; those of
      `judge_split.check`; and, for public comparisons, those of
      `training.rankings.check`.

  Returns:
    The pipeline with `valid`.
  """
  config = pipeline.config
  data = dataclasses.replace(
    config.data,
    **{name: getattr(start.data, name) for name in inheritance.INHERITED},
  )
  public = dataclasses.replace(data, comparisons=config.reward_init.comparisons)
  documents = documents_lib.open_documents(data)
  splits = {
    "data.demonstrations": inputs.demonstrations(data, start.tokenizer),
    "data.prompts": inputs.prompts(data, start.tokenizer),
  } | _read_rankings(config, data, public, start.tokenizer)
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
      public if field == PUBLIC else data,
      field.rpartition(".")[2],
      lambda split=split: [_record_contents(part, unused) for part in split],
      **{k: len(v) for k, v in split._asdict().items()},
    )
    for field, split in splits.items()
  }
  inputs_of_run[documents_lib.FIELD] = documents.fingerprint(
    documents.contents(), *documents.counts
  )
  _require_same_inputs(pipeline, inputs_of_run)
  return dataclasses.replace(pipeline, valid=valid)


def _read_rankings(
  config: configs.PipelineExperiment,
  data: configs.Data,
  public: configs.Data,
  tokenizer: Tokenizer | None,
) -> dict[str, inputs.Splits]:
  """Reads the rankings and the public comparisons that the pipeline has.

  Args:
    config: the pipeline.
    data: names the rankings.
    public: names the public comparisons.
    tokenizer: counts tokens; without one, no limit in tokens is applied.
  """
  has_limits = tokenizer is not None
  splits = {}
  if data.comparisons:
    splits[rankings_lib.FIELD] = rankings = inputs.rankings(data, tokenizer)
    if config.until not in _BEFORE_RANKINGS:
      judge_split.check(rankings, config, has_limits=has_limits)
  else:
    _check_labeling(config)
  if public.comparisons:
    section, seed = config.reward_init.section, config.seed
    with naming_fields(STAGE_FIELDS["reward_init"]):
      splits[PUBLIC] = read = inputs.rankings(public, tokenizer)
      rankings_lib.check(read, public, section, seed, has_limits=has_limits)
    if data.comparisons:
      _require_apart(read, rankings, data)
  return splits


def _require_same_inputs(
  pipeline: Pipeline, inputs_of_run: dict[str, fingerprint.Source]
) -> None:
  """Records what the pipeline reads, or refuses what an earlier call did not.

  Args:
    pipeline: the pipeline.
    inputs_of_run: fingerprint of each source.
  """
  config = pipeline.config
  starts = {
    "init_from": config.init_from,
    "reward.init_from": config.reward.init_from,
  }
  models = {
    field: fingerprint.fingerprint_model(path)
    for field, path in starts.items()
    if path and path not in OWN_STARTS
  }
  sources = fingerprint.Fingerprint({}, inputs_of_run | models)
  path = pathlib.Path(pipeline.directory) / SOURCES
  if path.exists():
    recorded = {fingerprint.KEY: files.read_json(path)}
    sources.require_same(recorded, pipeline.directory)
  else:
    files.write_json_atomic(path, sources.as_dict())


def _require_files(config: configs.PipelineExperiment) -> None:
  """Refuses prepared sources where the pipeline writes rankings of its own.

  Splits that were decided before do not know the prompts of other files.
  """
  if config.until in _BEFORE_RANKINGS:
    return
  sources = {
    f"data.{name}": getattr(config.data, name) for name in curated_source.KINDS
  } | {PUBLIC: config.reward_init.comparisons}
  for field, source in sources.items():
    if layout.is_prepared(source):
      raise UserError(
        "is prepared, but a pipeline divides the rankings between the reward"
        " model and the judge, and needs their sources as files",
        file=source,
        field=field,
        fix="give the files that were prepared, or run the stages one by one",
        code="prepared_rankings",
      )


def _check_labeling(config: configs.PipelineExperiment) -> None:
  """Refuses settings of the reward model that no labels of the world fit.

  Raises:
    UserError: `unknown_labeler`, `no_rankings` or `no_grades`.
  """
  section = config.reward.section
  left_out = rankings_lib.left_out_labelers(section, labelers.TRAINING)
  if left_out == set(labelers.TRAINING):
    raise rankings_lib.no_rankings()
  completions = min(
    config.labeling.completions,
    section.max_completions or config.labeling.completions,
  )
  if section.margin == "rank" and completions < 3:
    raise rankings_lib.no_rank_grades()


def _require_apart(
  public: inputs.Splits, rankings: inputs.Splits, data: configs.Data
) -> None:
  """Refuses training prompts of `public` that are held out in `rankings`.

  The two are sources of different stages; each is split without the other, and
  splits that a file gives, or that follow its users, may disagree.
  """

  def marked(records: Sequence[Ranking], split: str) -> list[Ranking]:
    return [dataclasses.replace(record, split=split) for record in records]

  train = marked(public.train, "train")
  held_out = marked(rankings.valid, "valid") + marked(rankings.test, "test")
  splitter = splits_lib.Splitter(train, data, [held_out])
  clashing = [r for r in train if splitter.is_held_out_elsewhere(r)]
  if clashing:
    file, line = drops.place_of(clashing[0].origin)
    more = len(clashing) - 1
    others = f", as are those of {more:,} more training records" * bool(more)
    raise UserError(
      f"its prompt is held out in {data.comparisons}{others}",
      file=file,
      line=line,
      field=PUBLIC,
      fix='give these records "split": "valid", or leave them out',
      code="held_out_prompt",
    )


def _record_contents(
  records: Sequence[Any], unused: Collection[str]
) -> list[dict[str, Any]]:
  """Returns the fields of records but for those that the stages do not use."""
  return [
    {name: value for name, value in vars(record).items() if name not in unused}
    for record in records
  ]
