"""The shape legend, and the pytrees that batches and rollouts travel in.

Shape letters, used in every docstring:

  B  rows of a batch          T  positions of a row (prompt + response)
  P  prompt positions         N  response positions (new tokens)
  K  completions of a prompt  V  vocabulary        D  model width
  G  groups of rankings       E  prompts of each   R  rows of each
  H  heads                    L  layers            S  cache slots
  A  head size

In `models`, K is the number of key-value heads.

`segments` numbers the documents of a row from 1; 0 is padding. A token attends
to earlier tokens of its own segment only, and `positions` restart in each
segment, so packed, left-padded and right-padded rows are all the same thing.
A negative segment is a prefix that all later tokens of its row attend to as
well, up to the next one: several completions share one prompt that way, and
their positions continue the prompt's. The prefixes of a row are −1, −2, …
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, dataclass_transform

import jax

Array = jax.Array
PyTree = Any


def static_field(default: Any) -> Any:
  """Makes a static field of a pytree: programs are compiled for its value."""
  return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(
  frozen_default=True,
  kw_only_default=True,
  field_specifiers=(dataclasses.field, static_field),
)
def pytree(cls):
  """Makes a frozen dataclass of arrays a JAX pytree."""
  cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
  return jax.tree_util.register_dataclass(cls)


@pytree
class LanguageBatch:
  """Sequences for a language-model loss; position t is scored on token t."""

  tokens: Array  # [B, T] int32
  segments: Array  # [B, T] int32, 0 is padding
  positions: Array  # [B, T] int32
  weights: Array  # [B, T] float32, weight of predicting token t from < t


class AttentionSpan(NamedTuple):
  """How far tokens attend: to a prefix, and to a number of earlier tokens."""

  prefix: int  # positions at the start, of a prefix that all tokens attend to
  local: int  # positions up to and including a token's own, in its segment


@pytree
class RankingBatch:
  """E prompts with their K ranked completions are one group, of R rows.

  The completions of a prompt are divided over the rows. A row has the prompts
  of its completions, as segments −1, −2, …, and each prompt's completions after
  it. Each completion is a segment whose positions continue the prompt's. With
  one row all completions of a prompt share it; with K rows none do.
  """

  tokens: Array  # [G, R, T] int32
  segments: Array  # [G, R, T] int32, 0 is padding
  positions: Array  # [G, R, T] int32
  # [G, E, K] int32, index of completions' last tokens in the flattened [R · T]
  ends: Array
  ranks: Array  # [G, E, K] int32, 1 is best, equal ranks are ties
  valid: Array  # [G, E, K] bool, False on padding
  ids: Array  # [G, E] int32, index of the ranking; -1 is padding
  # [G, E, K] float32, the highest is best, 0 on padding; None has no grades
  grades: Array | None = None
  span: AttentionSpan | None = static_field(None)  # None is no limit


@pytree
class PromptBatch:
  """Left-padded prompts: the last position has each row's last token."""

  tokens: Array  # [B, P] int32
  mask: Array  # [B, P] bool, True on real tokens
  ids: Array  # [B] int32, identifies the prompt; folded into the row's key


@pytree
class Rollout:
  """Prompts with sampled responses and their log-probabilities."""

  tokens: Array  # [B, P + N] int32, left-padded prompt then response
  segments: Array  # [B, P + N] int32, 1 on real tokens, 0 on padding
  positions: Array  # [B, P + N] int32
  response_mask: Array  # [B, N] bool, True up to and including end-of-text
  logp: Array  # [B, N] float32, log-probability of each sampled token
  ended: Array  # [B] bool, True where the row sampled end-of-text


@pytree
class Experience:
  """A rollout with everything the PPO losses take as constants."""

  rollout: Rollout
  advantages: Array  # [B, N] float32, whitened when the config says so
  returns: Array  # [B, N] float32, unwhitened advantages + values
  values: Array  # [B, N] float32, value network at rollout time
