"""All formats, in the order in which a record is compared with them."""

from __future__ import annotations

import functools

from instructgpt_jax.data.formats import (
  common,
  demonstrations,
  label_studio,
  native,
  pairs,
  prompts,
  scored,
  trees,
  verdicts,
)
from instructgpt_jax.data.formats.format import Format

FORMATS: tuple[Format, ...] = (
  native.STRINGS,
  trees.TREES,
  label_studio.EXPORT,
  label_studio.MINIMAL_RANKING,
  pairs.HH,
  pairs.PREFERENCE,
  pairs.REJECTED_RESPONSE,
  pairs.OPENAI,
  native.RANKINGS,
  scored.SCORED,
  scored.PARALLEL,
  verdicts.ARENA,
  demonstrations.MESSAGES,
  demonstrations.BATCH,
  verdicts.OUTPUTS,
  verdicts.STRENGTH,
  label_studio.MINIMAL,
  verdicts.PANDALM,
  verdicts.SAFE_RLHF,
  verdicts.SHP,
  verdicts.WEBGPT,
  verdicts.SUMMARIES,
  scored.SUMMARY_AXES,
  scored.HELPSTEER,
  demonstrations.SEEDS,
  prompts.PREDICTIONS,
  demonstrations.DOLLY,
  demonstrations.ALPACA,
  native.DEMONSTRATIONS,
  demonstrations.QUESTIONS,
  demonstrations.OPEN_ORCA,
  demonstrations.QUERIES,
  demonstrations.RESPONSES,
  demonstrations.INPUTS,
  demonstrations.P3,
  demonstrations.FLAN,
  prompts.QUESTIONS,
  prompts.TEXTS,
  native.PROMPTS,
  native.TEXT,
)
PLAIN = Format(
  "plain text",
  lambda obj: False,
  lambda obj, reader: iter(()),
  result="documents",
)


@functools.cache
def common_fields(name: str) -> frozenset[str]:
  """Returns the common fields that are read beside a format's own."""
  known = by_name(name)
  names = common.FIELDS if known.common is None else known.common
  return frozenset(names) - known.fields.keys() - set(known.irrelevant)


@functools.cache
def known_fields(name: str) -> frozenset[str]:
  """Returns every field that is used or known to be irrelevant."""
  known = by_name(name)
  return common_fields(name).union(
    known.fields, known.irrelevant, common.IRRELEVANT
  )


@functools.cache
def by_name(name: str) -> Format:
  """Returns the format of a name."""
  return next(f for f in FORMATS if f.name == name)
