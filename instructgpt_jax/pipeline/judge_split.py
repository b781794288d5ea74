"""Divides the user's rankings between the reward model and the judge.

Each part is written as ordinary files, one for each weighted part of
`data.comparisons`.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping

from instructgpt_jax import configs
from instructgpt_jax.data import reading
from instructgpt_jax.data.curation import splits as splits_lib
from instructgpt_jax.data.reading import specs
from instructgpt_jax.data.records import Ranking
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.pipeline import rankings as rankings_lib
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.training import inputs, mixed_sources
from instructgpt_jax.training import rankings as training_rankings

REWARD, JUDGE = "reward", "judge"
_NAMES = {REWARD: "reward model", JUDGE: "judge"}
_OTHER_CHARACTERS = re.compile(r"[^A-Za-z0-9_-]+")


def divide(
  pools: inputs.Splits, data: configs.Data, judge_fraction: float
) -> dict[str, inputs.Splits]:
  """Divides rankings so that the judge shares no prompt with the reward model.

  The rankings of a user stay together, except those of prompts that several
  users have. Test rankings are in neither part.

  Args:
    pools: curated rankings.
    data: the run's data section.
    judge_fraction: the judge's share of the groups.

  Returns:
    REWARD and JUDGE -> rankings.
  """
  rankings = [(s, r) for s, pool in pools._asdict().items() for r in pool]
  anonymous = [
    dataclasses.replace(ranking, split="", user_id="")
    for _, ranking in rankings
  ]
  splitter = splits_lib.Splitter(anonymous, data)
  prompts = [splitter.group_of(ranking) for ranking in anonymous]
  users: dict[str, set[str]] = collections.defaultdict(set)
  for (_, ranking), prompt in zip(rankings, prompts, strict=True):
    users[prompt].add(ranking.user_id)
  parts = {name: inputs.Splits([], [], []) for name in (REWARD, JUDGE)}
  for (split, ranking), prompt in zip(rankings, prompts, strict=True):
    group = prompt
    if ranking.user_id and len(users[prompt]) == 1:
      group = splits_lib.user_of(ranking)
    is_judged = splits_lib.hash_fraction(f"judge:{group}") < judge_fraction
    if split != "test":
      getattr(parts[JUDGE if is_judged else REWARD], split).append(ranking)
  return parts


def check(
  pools: inputs.Splits, config: configs.PipelineExperiment, *, has_limits: bool
) -> None:
  """Refuses rankings on which a later stage could not be trained.

  Args:
    pools: curated rankings.
    config: the pipeline.
    has_limits: see `training.rankings.check`.

  Raises:
    UserError: `unknown_labeler`; `too_few_rankings`, a part has none for
      training, also of one weighted source; and those of
      `training.rankings.check`.
  """
  section = config.reward.section
  known = {r.labeler_id for r in [*pools.train, *pools.valid]}
  training_rankings.left_out_labelers(section, known)
  for part in _divide_or_refuse(pools, config, _source(config)).values():
    training_rankings.check(
      part,
      config.data,
      _leave_out_known(section, [*part.train, *part.valid]),
      config.seed,
      has_limits=has_limits,
    )


def write(
  config: configs.PipelineExperiment, directory: str, tokenizer: Tokenizer
) -> None:
  """Writes both parts of the rankings, unless they exist.

  Args:
    config: the pipeline.
    directory: directory of the files.
    tokenizer: counts tokens.

  Raises:
    UserError: `too_few_rankings`.
  """
  source = _source(config)
  paths = {r: _paths(source, directory, r) for r in (REWARD, JUDGE)}
  if all(path.exists() for of_role in paths.values() for path in of_role):
    return
  pools = inputs.rankings(config.data, tokenizer)
  for role, part in _divide_or_refuse(pools, config, source).items():
    by_split = {
      split: source.by_part(getattr(part, split))
      for split in ("train", "valid")
    }
    for i, path in enumerate(paths[role]):
      lines = [
        rankings_lib.ranking_record(
          ranking.turns,
          ranking.completions,
          ranking.ranks,
          split,
          user_id=ranking.user_id,
          labeler_id=ranking.labeler_id,
          grades=ranking.grades,
        )
        for split, groups in by_split.items()
        for ranking in groups[i]
      ]
      files.write_jsonl_atomic(path, lines)


def comparisons(
  config: configs.PipelineExperiment, directory: str, role: str
) -> str:
  """Returns the value of `data.comparisons` that names one part's files.

  Args:
    config: the pipeline; its weights are those of the files.
    directory: directory of the files.
    role: REWARD or JUDGE.
  """
  source = _source(config)
  paths = map(str, _paths(source, directory, role))
  weights = [part.weight for part in source.parts] or [None]
  return specs.join(map(specs.Part, paths, weights))


def leave_out_known(section: configs.Reward, source: str) -> configs.Reward:
  """Returns settings that leave out only labelers of a source's rankings.

  All rankings of a labeler may be in the other part.

  Args:
    section: the settings.
    source: value of `data.comparisons`.
  """
  if not section.leave_out:
    return section
  known = _leave_out_known(section, reading.read_rankings(source)[0])
  log_line(
    f"{source}: rankings of {known.leave_out or 'no labeler'} are left out"
  )
  return known


def _leave_out_known(
  section: configs.Reward, rankings: Iterable[Ranking]
) -> configs.Reward:
  known = {ranking.labeler_id for ranking in rankings}
  names = [name for name in section.leave_out.split(",") if name in known]
  return dataclasses.replace(section, leave_out=",".join(names))


def _source(config: configs.PipelineExperiment) -> mixed_sources.MixedSource:
  return mixed_sources.open_source(config.data, training_rankings.FIELD)


def _divide_or_refuse(
  pools: inputs.Splits,
  config: configs.PipelineExperiment,
  source: mixed_sources.MixedSource,
) -> Mapping[str, inputs.Splits]:
  parts = divide(pools, config.data, config.evaluation.judge_fraction)
  for role, part in parts.items():
    groups = source.by_part(part.train)
    for i, group in enumerate(groups):
      if group:
        continue
      counts = [len(source.by_part(pool)[i]) for pool in pools]
      raise UserError(
        f"{sum(counts):,} rankings, but none is left to train the"
        f" {_NAMES[role]}: they are divided by user and prompt",
        file=source.parts[i].name if source.parts else None,
        field=training_rankings.FIELD,
        fix="give more prompts, or change --evaluation.judge_fraction",
        code="too_few_rankings",
      )
  return parts


def _paths(
  source: mixed_sources.MixedSource, directory: str, role: str
) -> list[pathlib.Path]:
  """Returns the paths of a role's files, in the order of the parts."""
  root = pathlib.Path(directory)
  names = [
    _OTHER_CHARACTERS.sub("-", pathlib.PurePath(part.name).stem)
    for part in source.parts
  ]
  if not names:
    return [root / f"{role}.jsonl"]
  return [root / f"{role}_{i}_{name}.jsonl" for i, name in enumerate(names, 1)]
