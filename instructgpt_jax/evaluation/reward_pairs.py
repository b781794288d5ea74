"""Measures what a model reads in pairs of replies, in the embedded world.

A reward model scores the replies; with further ones, each kind of ensemble does
as well. Of a language model, two linear probes on its states do: one is fitted
to the labelers' training rankings, the other to the gold scores of the same
replies. Beside them stand two linear models that are fitted to the labelers'
rankings: of surface features, and of these and the claims that replies make.

`pairs.json` contains, by scorer, by set ("held_out" or "train") and by group of
pairs, one number for each distinct prompt:

  pairs         pairs that the labeler orders
  correct       of these, ordered alike by the scorer; equal scores count ½
  ceiling       of these, ordered alike by the gold score; equal scores count ½
  gold_pairs    pairs whose gold scores differ
  gold_correct  of these, ordered alike by the scorer
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from instructgpt_jax import configs, statistics
from instructgpt_jax.configs import checks
from instructgpt_jax.data import encoding, records
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError, naming_fields
from instructgpt_jax.evaluation import linear_probe, surface_features
from instructgpt_jax.runs import files
from instructgpt_jax.steps import reward_ensemble
from instructgpt_jax.training import (
  inheritance,
  inputs,
  networks,
  scoring,
  stage_model,
)
from instructgpt_jax.training import rankings as rankings_lib
from instructgpt_jax.types import PyTree
from instructgpt_jax.world import gold, requests, words, write
from instructgpt_jax.world.facts import World

PAIRS = "pairs.json"
# Scorers, beside those of `ensemble_scorer`: a reward model; probes of states,
# fitted to labels or to gold scores; linear models of surface features, without
# and with claims.
MODEL, LABELS, GOLD = "model", "labels", "gold"
SURFACE, CLAIMS = "surface", "claims"
HELD_OUT, TRAIN = "held_out", "train"
FIELDS = ("pairs", "correct", "ceiling", "gold_pairs", "gold_correct")
ALL = "all"  # the group of all pairs
# What a pair differs in; see `difference`.
DIFFERENCES = (
  "refusal",
  "content",
  "padding",
  "insult",
  "end",
  "several",
  "nothing",
)
# Upper bounds of the difference of two gold scores, and its name.
GAPS = ((0.1, "below 0.1"), (0.3, "0.1 to 0.3"), (0.6, "0.3 to 0.6"))
NO_GAP, LARGE_GAP = "equal", "0.6 or more"
GAP_NAMES = (NO_GAP, *(name for _, name in GAPS), LARGE_GAP)
_EQUAL = 1e-9


def ensemble_scorer(kind: str) -> str:
  """Returns the name of the scorer that is an ensemble of a kind."""
  return f"ensemble: {kind}"


# Set → scores [K], or features [K, D], of each ranking.
Scores = Mapping[str, Sequence[np.ndarray]]


class Reply(NamedTuple):
  """What the gold labeler sees of a reply."""

  gold: float
  declines: bool  # says that it does not know, or can not help
  content: float
  padding: int
  insult: tuple[bool, bool]  # an insult, a moral
  end: tuple[bool, bool]  # has ended, has a turn of the user
  claims: tuple[tuple[str, ...], ...] = ()  # see `surface_features`


class GradedRanking(NamedTuple):
  """A ranking with what the gold labeler says of its K replies."""

  prompt: str
  family: str
  source: str  # the file's name, such as round_1
  ranks: tuple[int, ...]
  replies: tuple[Reply, ...]
  sequences: tuple[np.ndarray, ...]  # token ids of prompt and reply
  surface: np.ndarray  # [K, F], see `surface_features`


def run(config: configs.PairsExperiment, directory: str) -> None:
  """Measures the model of `init_from`.

  Args:
    config: the experiment. `data.comparisons` and `reward` are those of the
      reward model's training.
    directory: its workdir; gets pairs.json, and means in complete.json.

  Raises:
    UserError: `missing_model`, `missing_source`, `no_reward_model` for an
      ensemble with a language model, or what cannot be read.
  """
  if stage_model.is_complete(directory):
    return
  section = config.pairs
  _require(config.init_from, "init_from", "missing_model")
  _require(section.world, "pairs.world", "missing_source")
  _require(section.held_out, "pairs.held_out", "missing_source")
  stage = stage_model.open_stage(
    config.init_from, field="init_from", run=config
  )
  others = _open_ensemble(config, stage)
  world = write.load_world(section.world)
  parts = {
    part: grade_rankings(rankings, world, stage.tokenizer, config.data)
    for part, rankings in _select(config, stage.tokenizer).items()
  }
  result = {
    name: {
      part: count_pairs(parts[part], rows) for part, rows in scores.items()
    }
    for name, scores in _score(config, stage, others, parts).items()
  }
  files.write_json_atomic(pathlib.Path(directory) / PAIRS, result, indent=None)
  files.mark_complete(directory, _summarize(result))


def _require(value: str, field: str, code: str) -> None:
  if not value:
    raise UserError(
      "is missing",
      field=field,
      fix=f"set --{field}=PATH",
      code=code,
    )


def _open_ensemble(
  config: configs.PairsExperiment, stage: stage_model.Stage
) -> list[stage_model.Stage]:
  """Opens the models that form an ensemble with the measured one.

  Raises:
    UserError: `bad_reward_models`; `no_reward_model`, the measured model is a
      language model; or one of them cannot be used.
  """
  field = "pairs.ensemble"
  paths = config.pairs.ensemble.split(",") if config.pairs.ensemble else []
  checks.check_model_names([config.init_from, *paths], field)
  if paths and stage.kind != stage_model.SCALAR:
    raise UserError(
      "is set, and the model of init_from is a language model",
      field=field,
      fix="leave it out, or set --init_from=DIR of a reward model",
      code="no_reward_model",
    )
  others = [
    stage_model.open_stage(
      path, kind=stage_model.SCALAR, field=field, run=config
    )
    for path in paths
  ]
  for other in others:
    inheritance.require_compatible(other, stage.tokenizer, config.data, field)
  return others


def _select(
  config: configs.PairsExperiment, tokenizer: Tokenizer
) -> dict[str, Sequence[records.Ranking]]:
  """Returns the held-out rankings, and training rankings if there are any."""
  section = config.pairs
  others = dataclasses.replace(config.data, comparisons=section.held_out)
  with naming_fields({rankings_lib.FIELD: "pairs.held_out"}):
    held_out = inputs.rankings(others, tokenizer).valid
  if not held_out:
    raise UserError(
      "has no validation rankings",
      file=section.held_out,
      field="pairs.held_out",
      fix='give rankings with "split": "valid"',
      code="no_validation",
    )
  if not config.data.comparisons:
    return {HELD_OUT: held_out}
  selected = rankings_lib.select_rankings(
    inputs.rankings(config.data, tokenizer), config.reward, config.seed
  )
  key = f"pairs {config.seed}"
  train = inputs.draw(selected.train, section.train_rankings, key)
  return {HELD_OUT: held_out, TRAIN: train}


def grade_rankings(
  rankings: Sequence[records.Ranking],
  world: World,
  tokenizer: Tokenizer,
  data: configs.Data,
) -> list[GradedRanking]:
  """Has the gold labeler read each reply as far as a reward model reads it.

  Raises:
    UserError: a prompt is not of the world.
  """
  result = []
  encoded = encoding.encode_rankings(rankings, tokenizer, data)
  for ranking, ids in zip(rankings, encoded, strict=True):
    prompt = ranking.turns[-1].text
    ended = [c[-1] == tokenizer.document_end_id for c in ids.completions]
    labels = [
      gold.label(prompt, text, bool(end), world=world)
      for text, end in zip(ranking.completions, ended, strict=True)
    ]
    request = requests.parse(world, prompt)
    kind = surface_features.kind_of(request)
    path = ranking.origin.rpartition(":")[0]
    result.append(
      GradedRanking(
        prompt=prompt,
        family=labels[0].family,
        source=pathlib.PurePath(path).stem,
        ranks=ranking.ranks,
        replies=tuple(
          _reply(request, text, label, bool(end))
          for text, label, end in zip(
            ranking.completions, labels, ended, strict=True
          )
        ),
        sequences=tuple(
          np.concatenate([ids.prompt, c]) for c in ids.completions
        ),
        surface=np.stack(
          [
            surface_features.compute(prompt, text, kind)
            for text in ranking.completions
          ]
        ),
      )
    )
  return result


def _reply(
  request: requests.Request, text: str, label: gold.Label, ended: bool
) -> Reply:
  return Reply(
    gold=label.score,
    declines=any(phrase in text for phrase in surface_features.DECLINING),
    content=label.content,
    padding=label.fillers,
    insult=(label.insult, label.failures["moral_judgment"]),
    end=(ended, any(token in words.TAGS for token in text.split())),
    claims=surface_features.claims_of(request, text),
  )


def difference(a: Reply, b: Reply) -> str:
  """Returns what two replies differ in, one of DIFFERENCES.

  "refusal" where one of them declines, whatever else differs. Otherwise the
  only part of the gold score that differs, or "several" or "nothing".
  """
  if a.declines != b.declines:
    return "refusal"
  parts = [
    name
    for name in ("content", "padding", "insult", "end")
    if getattr(a, name) != getattr(b, name)
  ]
  if len(parts) > 1:
    return "several"
  return parts[0] if parts else "nothing"


def gap(a: Reply, b: Reply) -> str:
  """Returns how far two gold scores are apart, one of GAP_NAMES."""
  distance = abs(a.gold - b.gold)
  if distance < _EQUAL:
    return NO_GAP
  return next(
    (name for bound, name in GAPS if distance < bound - _EQUAL), LARGE_GAP
  )


def count_pairs(
  rankings: Sequence[GradedRanking], scores: Sequence[np.ndarray]
) -> dict[str, dict[str, list[float]]]:
  """Counts the pairs of each distinct prompt that are ordered alike.

  Args:
    rankings: the rankings.
    scores: [K] of each ranking, by the scorer.

  Returns:
    Group of pairs → one of FIELDS → [prompts], in the order of the rankings.
  """
  prompts: dict[str, int] = {}
  for ranking in rankings:
    prompts.setdefault(ranking.prompt, len(prompts))
  counts: dict[str, np.ndarray] = collections.defaultdict(
    lambda: np.zeros((len(FIELDS), len(prompts)))
  )
  for ranking, row in zip(rankings, scores, strict=True):
    column = prompts[ranking.prompt]
    for i, j in itertools.combinations(range(len(ranking.ranks)), 2):
      values = _pair_counts(ranking, row, i, j)
      for group in _groups(ranking, i, j):
        counts[group][:, column] += values
  return {
    group: dict(zip(FIELDS, array.tolist(), strict=True))
    for group, array in counts.items()
  }


def _groups(ranking: GradedRanking, i: int, j: int) -> Iterator[str]:
  """Yields the groups of a pair of replies."""
  a, b = ranking.replies[i], ranking.replies[j]
  yield ALL
  yield f"family {ranking.family}"
  yield f"source {ranking.source}"
  yield f"differs in {difference(a, b)}"
  yield f"gold {gap(a, b)}"


def _pair_counts(
  ranking: GradedRanking, scores: np.ndarray, i: int, j: int
) -> list[float]:
  """Returns what a pair of replies adds to each of FIELDS."""
  a, b = ranking.replies[i], ranking.replies[j]
  labeler = np.sign(ranking.ranks[j] - ranking.ranks[i])
  by_gold = np.sign(a.gold - b.gold) if gap(a, b) != NO_GAP else 0
  scorer = np.sign(scores[i] - scores[j])
  is_ordered, has_gap = abs(labeler), abs(by_gold)
  return [
    is_ordered,
    is_ordered * (1 + scorer * labeler) / 2,
    is_ordered * (1 + by_gold * labeler) / 2,
    has_gap,
    has_gap * (1 + scorer * by_gold) / 2,
  ]


def _score(
  config: configs.PairsExperiment,
  stage: stage_model.Stage,
  others: Sequence[stage_model.Stage],
  parts: Mapping[str, Sequence[GradedRanking]],
) -> dict[str, Scores]:
  """Scores the replies of all rankings, by the model or by its probes.

  Args:
    config: the experiment.
    stage: the measured model.
    others: reward models that form an ensemble with it.
    parts: set → rankings.

  Returns:
    Scorer → set → [K] scores of each ranking.
  """
  mesh = mesh_lib.make_mesh(config.mesh)

  def values_of(
    stage: stage_model.Stage, params: PyTree, rankings: Sequence[GradedRanking]
  ) -> list[np.ndarray]:
    """Returns of each ranking its scores [K], or its states [K, D]."""
    sequences = [ids for ranking in rankings for ids in ranking.sequences]
    if stage.kind == stage_model.SCALAR:
      examples = [
        scoring.Example(ids, np.ones(len(ids), np.float32)) for ids in sequences
      ]
      values = scoring.score(stage.network, params, examples, mesh)
    else:
      values = scoring.last_states(stage.network, params, sequences, mesh)
    ends = np.cumsum([len(ranking.sequences) for ranking in rankings])
    return np.split(values, ends[:-1])

  by_stage = []
  for one in (stage, *others):
    params = networks.load_params(one, mesh)
    by_stage.append(
      {part: values_of(one, params, rows) for part, rows in parts.items()}
    )
  values = by_stage[0]
  if stage.kind == stage_model.SCALAR:
    return {MODEL: values} | (_combine(by_stage) if others else {})
  if TRAIN not in parts:
    raise UserError(
      "is a language model, whose probe needs training rankings",
      file=config.init_from,
      field="init_from",
      fix="give --data.comparisons=PATH, or the workdir of a reward model",
      code="no_rankings",
    )
  labels = [-np.array(ranking.ranks) for ranking in parts[TRAIN]]
  by_gold = [
    np.array([round(reply.gold, 6) for reply in ranking.replies])
    for ranking in parts[TRAIN]
  ]
  surface = {
    part: [ranking.surface for ranking in rankings]
    for part, rankings in parts.items()
  }
  return {
    LABELS: _probe(values, labels),
    GOLD: _probe(values, by_gold),
    SURFACE: _probe(surface, labels),
    CLAIMS: _probe(_with_claims(parts), labels),
  }


def _combine(scores: Sequence[Scores]) -> dict[str, Scores]:
  """Combines the scores of several reward models in each way."""
  combined = {
    part: [
      reward_ensemble.combine_in_each_way(np.stack(item))
      for item in zip(*(one[part] for one in scores), strict=True)
    ]
    for part in scores[0]
  }
  return {
    ensemble_scorer(kind): {
      part: [np.asarray(item[kind]) for item in rows]
      for part, rows in combined.items()
    }
    for kind in reward_ensemble.KINDS
  }


def _with_claims(parts: Mapping[str, Sequence[GradedRanking]]) -> Scores:
  """Returns surface features, and which of the training set's claims are made.

  Args:
    parts: set → rankings.
  """
  known: dict[tuple[str, ...], int] = {}
  for ranking in parts[TRAIN]:
    for reply in ranking.replies:
      for claim in reply.claims:
        known.setdefault(claim, len(known))

  def features(ranking: GradedRanking) -> np.ndarray:
    made = np.zeros((len(ranking.replies), len(known)))
    for row, reply in zip(made, ranking.replies, strict=True):
      row[[known[claim] for claim in reply.claims if claim in known]] = 1
    return np.concatenate([ranking.surface, made], axis=1)

  return {part: [features(r) for r in rows] for part, rows in parts.items()}


def _probe(features: Scores, orders: Sequence[np.ndarray]) -> Scores:
  """Scores replies by the linear model that orders the training set best.

  Args:
    features: set → [K, D] of each ranking.
    orders: [K] of each training ranking, higher is better.
  """
  weights = linear_probe.fit(features[TRAIN], orders)
  return {
    part: [states @ weights for states in rows]
    for part, rows in features.items()
  }


def _summarize(result: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the shares of all pairs that complete.json has."""
  summary: dict[str, Any] = {}
  for name, parts in result.items():
    for part, groups in parts.items():
      counts = groups[ALL]
      for field in ("correct", "ceiling"):
        summary[f"{name}_{part}_{field}"] = statistics.ratio_interval(
          counts[field], counts["pairs"], share=True
        ).as_dict()
  return summary
