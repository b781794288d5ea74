"""Compares candidates with the paper's criteria (appendix B.1).

The criteria are: agreement with the researchers on sensitive speech, agreement
with their rankings, the mean rating of demonstrations, and the groups for which
a candidate feels able to recognise sensitive speech. The cuts are soft: this
module only shows on which side of them a candidate is, and the owner decides.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from instructgpt_jax.labeling import quality

SENSITIVE, RANKING = "sensitive", "ranking"
DEMONSTRATION, GROUPS = "demonstration", "groups"
KINDS = (SENSITIVE, RANKING, DEMONSTRATION, GROUPS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cuts:
  """Soft cuts of the criteria.

  Attributes:
    sensitive: share of texts that are flagged as the researchers flag them.
    ranking: share of pairs that are ordered as the researchers order them.
    demonstration: mean rating of demonstrations, from 1 to 7.
  """

  sensitive: float = 0.75
  ranking: float = 0.75
  demonstration: float = 6.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScreeningAnswer:
  """What a candidate submitted for one screening item.

  Attributes:
    candidate: name of the candidate.
    kind: one of `KINDS`.
    content: the content of the form.
    gold: the researchers' content; None for demonstrations and groups, and for
      items without one.
    ratings: reviewers' ratings of a demonstration, from 1 to 7.
  """

  candidate: str
  kind: str
  content: Mapping[str, Any]
  gold: Mapping[str, Any] | None = None
  ratings: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Criterion:
  """One criterion of one candidate.

  Attributes:
    value: the candidate's value; NaN if it cannot be computed yet.
    cut: the soft cut.
    count: number of texts, pairs or demonstrations of the value.
    pending: number of demonstrations that no reviewer has rated.
  """

  value: float
  cut: float
  count: int
  pending: int = 0

  @property
  def passed(self) -> bool | None:
    """Whether the value reaches the cut; None without a value."""
    return None if math.isnan(self.value) else self.value >= self.cut


@dataclasses.dataclass(frozen=True)
class CandidateRow:
  """A candidate beside the cuts.

  Attributes:
    candidate: name of the candidate.
    sensitive: agreement on sensitive speech.
    ranking: agreement on rankings.
    demonstration: mean rating of demonstrations.
    groups: groups that the candidate named, and other ones in own words.
    answers: number of submitted screening items.
  """

  candidate: str
  sensitive: Criterion
  ranking: Criterion
  demonstration: Criterion
  groups: tuple[str, ...]
  answers: int

  @property
  def criteria(self) -> tuple[Criterion, Criterion, Criterion]:
    """The criteria that have a cut."""
    return self.sensitive, self.ranking, self.demonstration

  @property
  def passed(self) -> bool | None:
    """Whether all cuts are reached; None while a value is missing.

    False as soon as one cut is not reached.
    """
    results = [criterion.passed for criterion in self.criteria]
    if False in results:
      return False
    return None if None in results else True


def screen_candidates(
  answers: Iterable[ScreeningAnswer], cuts: Cuts = Cuts()
) -> list[CandidateRow]:
  """Returns a row for each candidate, in the order of their names."""
  by_candidate: dict[str, list[ScreeningAnswer]] = {}
  for answer in answers:
    by_candidate.setdefault(answer.candidate, []).append(answer)
  return [_row(name, by_candidate[name], cuts) for name in sorted(by_candidate)]


def _row(
  candidate: str, answers: Sequence[ScreeningAnswer], cuts: Cuts
) -> CandidateRow:
  groups: dict[str, None] = {}
  for answer in _of_kind(answers, GROUPS):
    groups.update(dict.fromkeys(answer.content.get("groups") or ()))
    if answer.content.get("other"):
      groups[answer.content["other"]] = None
  return CandidateRow(
    candidate,
    _sensitive(_of_kind(answers, SENSITIVE), cuts.sensitive),
    _ranking(_of_kind(answers, RANKING), cuts.ranking),
    _demonstration(_of_kind(answers, DEMONSTRATION), cuts.demonstration),
    tuple(groups),
    len(answers),
  )


def _of_kind(
  answers: Sequence[ScreeningAnswer], kind: str
) -> list[ScreeningAnswer]:
  return [answer for answer in answers if answer.kind == kind]


def _sensitive(answers: Sequence[ScreeningAnswer], cut: float) -> Criterion:
  """Computes the share of texts that are flagged as in the gold content."""
  equal = [
    flag == gold
    for answer in answers
    if answer.gold
    for flag, gold in zip(
      answer.content["sensitive"], answer.gold["sensitive"], strict=True
    )
  ]
  return Criterion(
    statistics.fmean(equal) if equal else math.nan, cut, len(equal)
  )


def _ranking(answers: Sequence[ScreeningAnswer], cut: float) -> Criterion:
  """Computes the share of pairs that are ordered as in the gold content."""
  agreeing = pairs = 0
  for answer in answers:
    if answer.gold and answer.content.get("ranks"):
      alike, ordered, _ = quality.compare_ranks(
        answer.content["ranks"], answer.gold["ranks"]
      )
      agreeing += alike
      pairs += ordered
  return Criterion(agreeing / pairs if pairs else math.nan, cut, pairs)


def _demonstration(answers: Sequence[ScreeningAnswer], cut: float) -> Criterion:
  """Computes the mean over demonstrations of their mean rating."""
  means = [statistics.fmean(a.ratings) for a in answers if a.ratings]
  return Criterion(
    statistics.fmean(means) if means else math.nan,
    cut,
    len(means),
    len(answers) - len(means),
  )
