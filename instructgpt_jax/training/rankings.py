"""The rankings of a run: encoded in memory, or prepared and read by index."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence, Sized
from typing import NamedTuple

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data import encoding, records
from instructgpt_jax.data.batch_source import SourceMix
from instructgpt_jax.data.curation import token_limits
from instructgpt_jax.data.prepared import manifest
from instructgpt_jax.data.prepared.records import PreparedRecords
from instructgpt_jax.data.ranking_source import (
  ListedRankings,
  PreparedRankings,
  RankingSource,
  num_completions,
)
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.training import fingerprint, inputs, mixed_sources
from instructgpt_jax.training.inputs import Splits

FIELD = "data.comparisons"


class Rankings(NamedTuple):
  """The rankings of a run.

  Attributes:
    source: the flag, and the parts of the source if they have weights.
    train: training rankings.
    mix: shares of the source's parts.
    valid: validation rankings.
    left_out: validation rankings by labelers that are left out.
    fingerprint: fingerprint of the source.
  """

  source: mixed_sources.MixedSource
  train: RankingSource
  mix: SourceMix | None
  valid: RankingSource
  left_out: RankingSource
  fingerprint: fingerprint.Source


def open_rankings(
  config: configs.RewardExperiment, tokenizer: Tokenizer
) -> Rankings:
  """Opens the rankings of a run, and selects those that it uses.

  Args:
    config: the experiment.
    tokenizer: the run's tokenizer.

  Raises:
    UserError: `unknown_labeler`, `no_rankings`; `no_grades`, nothing grades the
      rankings for a margin; `not_prepared` for a setting that prepared rankings
      do not have; and errors of reading.
  """
  splits = inputs.rankings(config.data, tokenizer)
  if isinstance(splits.train, PreparedRecords):
    return _open_prepared(config, splits)
  return _encode(config, splits, tokenizer)


def _encode(
  config: configs.RewardExperiment, splits: Splits, tokenizer: Tokenizer
) -> Rankings:
  """Encodes rankings in memory."""
  section = config.reward
  selected = select_rankings(splits, section, config.seed)
  _require_grades(selected.train, section)
  _report_ties(selected.train, config)
  source = mixed_sources.open_source(config.data, FIELD)
  *groups, valid, left_out = (
    encoding.encode_rankings(rankings, tokenizer, config.data)
    for rankings in (
      *source.group(selected.train), selected.valid, selected.left_out,
    )
  )  # fmt: skip
  if section.pairs:
    groups = [encoding.split_into_pairs(group) for group in groups]
  train = [ranking for group in groups for ranking in group]
  parts = (train, valid, left_out)
  contents = [[(r.prompt, r.completions, r.ranks) for r in p] for p in parts]
  grades = [r.grades for r in train] if section.margin == "grade" else None
  return Rankings(
    source,
    ListedRankings(train),
    source.mix([len(group) for group in groups]),
    ListedRankings(valid),
    ListedRankings(left_out),
    fingerprint.fingerprint_source(
      config.data.comparisons,
      contents if grades is None else [*contents, grades],
      **{name: len(part) for name, part in selected._asdict().items()},
    ),
  )


def _open_prepared(
  config: configs.RewardExperiment, splits: Splits
) -> Rankings:
  """Selects prepared rankings, which are read when they are used."""
  section = config.reward
  unusable = {
    "pairs": section.pairs,
    "max_completions": section.max_completions,
    "margin": section.margin == "grade",
  }
  for name, is_set in unusable.items():
    if is_set:
      raise UserError(
        "is set, but prepared rankings are used as they are, without grades",
        field=f"reward.{name}",
        fix=f"leave out --reward.{name}, or give --{FIELD} files that are not"
        " prepared",
        code="not_prepared",
      )
  names = manifest.read_records(
    config.data.comparisons, "comparisons"
  ).labelers["comparisons"]
  labelers = left_out_labelers(section, names)
  numbers = [i for i, name in enumerate(names) if name in labelers]
  is_out = {
    split: np.isin(part.labelers, numbers)
    for split, part in (("train", splits.train), ("valid", splits.valid))
  }
  train = np.flatnonzero(~is_out["train"])
  if section.max_rankings and section.max_rankings < len(train):
    order = _random_state(config.seed).permutation(len(train))
    train = train[np.sort(order[: section.max_rankings])]
  _require_rankings(train)
  parts = {
    "train": PreparedRankings(splits.train, train),
    "valid": PreparedRankings(splits.valid, np.flatnonzero(~is_out["valid"])),
    "left_out": PreparedRankings(splits.valid, np.flatnonzero(is_out["valid"])),
  }
  if section.margin == "rank" and num_completions(parts["train"]).max() < 3:
    raise no_rank_grades()
  counts = {name: len(part) for name, part in parts.items()}
  return Rankings(
    source=mixed_sources.MixedSource(FIELD, ()),
    mix=None,
    **parts,
    fingerprint=fingerprint.fingerprint_prepared(
      config.data.comparisons, **counts
    ),
  )


def check(
  splits: Splits,
  data: configs.Data,
  section: configs.Reward,
  seed: int,
  *,
  has_limits: bool,
) -> None:
  """Refuses rankings on which a reward model could not be trained.

  Args:
    splits: curated rankings.
    data: the data section; `comparisons` may have weights.
    section: the settings.
    seed: seed of the random choice.
    has_limits: whether rankings above the limits in tokens are left out
      already. Without, grades that some rankings lack are no error yet.

  Raises:
    UserError: `unknown_labeler`, `no_rankings`, `no_grades` or `empty_source`.
  """
  if not has_limits:  # which rankings max_rankings takes is not known yet
    section = dataclasses.replace(section, max_rankings=None)
  train = select_rankings(splits, section, seed).train
  mixed_sources.open_source(data, FIELD).group(train)
  if not has_limits and section.margin == "grade":
    train = [r for r in train if r.grades] or train
  _require_grades(train, section)


class RankingSplits(NamedTuple):
  """Rankings of the labelers in training, and of those that are left out."""

  train: list[records.Ranking]
  valid: list[records.Ranking]
  left_out: list[records.Ranking]  # validation rankings


def select_rankings(
  splits: Splits, section: configs.Reward, seed: int
) -> RankingSplits:
  """Leaves out labelers, and limits the rankings and their completions.

  Args:
    splits: all rankings.
    section: the settings; limits apply to training rankings alone.
    seed: seed of the random choice.

  Raises:
    UserError: `unknown_labeler` or `no_rankings`.
  """
  train, valid = list(splits.train), list(splits.valid)
  left_out: list[records.Ranking] = []
  labelers = left_out_labelers(section, {r.labeler_id for r in train + valid})
  if labelers:
    left_out = [r for r in valid if r.labeler_id in labelers]
    train, valid = (
      [r for r in split if r.labeler_id not in labelers]
      for split in (train, valid)
    )
  rng = _random_state(seed)
  if section.max_rankings and section.max_rankings < len(train):
    indices = np.sort(rng.permutation(len(train))[: section.max_rankings])
    train = [train[i] for i in indices]
  if section.max_completions:
    train = [
      _sample_completions(r, section.max_completions, rng) for r in train
    ]
  _require_rankings(train)
  return RankingSplits(train, valid, left_out)


def left_out_labelers(
  section: configs.Reward, known: Collection[str]
) -> set[str]:
  """Returns the labelers that a reward model leaves out.

  Args:
    section: the settings.
    known: labelers of the rankings.

  Raises:
    UserError: `unknown_labeler`.
  """
  labelers = {name for name in section.leave_out.split(",") if name}
  unknown = sorted(labelers - set(known))
  if unknown:
    raise UserError(
      f"no ranking is of {unknown[0]!r}",
      field="reward.leave_out",
      fix="give labeler_ids of the rankings: "
      + ", ".join(sorted(filter(None, known))[:9]),
      code="unknown_labeler",
    )
  return labelers


def _random_state(seed: int) -> np.random.RandomState:
  # 7 tells this generator apart from others of the same seed.
  return np.random.RandomState([seed & 0xFFFFFFFF, 7])


def _require_rankings(train: Sized) -> None:
  """Refuses a selection without training rankings."""
  if not len(train):
    raise no_rankings()


def no_rankings() -> UserError:
  """Returns the error of a run whose labelers are all left out."""
  return UserError(
    "no ranking is left to train on",
    field="reward.leave_out",
    fix="leave out fewer labelers",
    code="no_rankings",
  )


def _require_grades(
  rankings: Sequence[records.Ranking], section: configs.Reward
) -> None:
  """Refuses rankings that a margin needs grades of, and that have none."""
  if section.margin == "rank":
    if all(max(r.ranks) - min(r.ranks) < 2 for r in rankings):
      raise no_rank_grades()
  if section.margin != "grade":
    return
  without = [r for r in rankings if not r.grades]
  if without:
    raise UserError(
      f"is grade, but {len(without):,} of {len(rankings):,} training rankings"
      f" have no grades, the first at {without[0].origin}",
      field="reward.margin",
      fix='give each of them "grades", one number a completion, or use'
      " --reward.margin=rank",
      code="no_grades",
    )


def no_rank_grades() -> UserError:
  """Returns the error of margins by rank without ranks that are apart."""
  return UserError(
    "is rank, but no completions are two ranks apart: all margins would be"
    " equal",
    field="reward.margin",
    fix="leave out --reward.margin, or rank three completions or more",
    code="no_grades",
  )


def _report_ties(
  rankings: Sequence[records.Ranking], config: configs.RewardExperiment
) -> None:
  """Says how many rankings have only ties, as `max_completions` may leave."""
  tied = sum(len(set(r.ranks)) < 2 for r in rankings)
  if tied:
    log_line(
      f"{config.data.comparisons}: {tied:,} of {len(rankings):,} training"
      " rankings have only ties among the completions that are used, and train"
      " nothing"
    )


def _sample_completions(
  ranking: records.Ranking, max_completions: int, rng: np.random.RandomState
) -> records.Ranking:
  """Returns a ranking of some random completions, in their order."""
  count = len(ranking.completions)
  indices = np.sort(rng.permutation(count)[:max_completions])
  return token_limits.select_completions(ranking, indices.tolist())
