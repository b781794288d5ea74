"""PPO's networks, and what they compute at the states of packed episodes.

An episode is a prompt and its sampled response. A state is a position whose
output PPO reads: each that predicts a response token, and the last token's, at
which the reward model reads the score.

Shape letters, beside those of `types`:

  B  episodes, of P prompt and N response positions
  C  microbatches
  M  rows of a microbatch, T = P + N tokens, which hold an episode or several
  S  states that a row has room for, N + 1; a response of N tokens has as many.
     In `types`, S is the slots of a KV cache.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import optax

from instructgpt_jax.losses import chunked
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.steps import language as language_step
from instructgpt_jax.steps import packing as packing_lib
from instructgpt_jax.types import Array, PyTree, Rollout, pytree


class Networks(NamedTuple):
  """The networks of PPO, and the optimizers of those that are trained.

  They hold no parameters. The reference is the policy's network with the
  parameters before PPO. Several reward models are an ensemble.
  """

  policy: LanguageModel
  rewards: tuple[ScalarModel, ...]
  value: ScalarModel
  policy_optimizer: optax.GradientTransformation
  value_optimizer: optax.GradientTransformation


class BaseParams(NamedTuple):
  """Frozen base parameters under LoRA adapters.

  None or {} where all parameters are trained.
  """

  policy: PyTree = None
  value: PyTree = None


@pytree
class PackedEpisodes:
  """Episodes packed into rows: [C, M, …] for all microbatches, [M, …] for one.

  `steps.packing` packs them, several to a row if there are several
  microbatches.
  """

  tokens: Array  # [·, T] int32
  # [·, T] int32, number of the episode in the rollout, from 1; 0 is padding
  segments: Array
  positions: Array  # [·, T] int32, in the episode
  state_positions: Array  # [·, S] int32, position of each state in the row
  actions: Array  # [·, S] int32, the token that follows each state
  mask: Array  # [·, S] bool, True where a response token follows


def pack_episodes(
  rollout: Rollout, microbatch: int | None = None
) -> tuple[packing_lib.Packing, PackedEpisodes]:
  """Packs the episodes of a rollout into rows.

  Args:
    rollout: B episodes.
    microbatch: M, rows of a microbatch; None is `packing.microbatch_size`.

  Returns:
    The packing, for other arrays of these episodes; and the packed episodes,
    [C, M, …].
  """
  token_mask = rollout.segments > 0
  response_length = rollout.response_mask.shape[1]
  packing = packing_lib.pack(token_mask, response_length + 1, microbatch or 0)
  segment_ids = 1 + jnp.arange(len(token_mask), dtype=jnp.int32)
  episodes = PackedEpisodes(
    tokens=packing.pack_tokens(rollout.tokens),
    segments=packing.pack_tokens(
      jnp.broadcast_to(segment_ids[:, None], token_mask.shape)
    ),
    positions=packing.pack_tokens(rollout.positions),
    state_positions=packing.state_positions,
    actions=packing.pack_states(
      pad_to_states(rollout.tokens[:, -response_length:])
    ),
    mask=packing.pack_states(pad_to_states(rollout.response_mask)),
  )
  return packing, episodes


def pad_to_states(x: Array) -> Array:
  """Appends a zero for the last state: [B, N] → [B, N + 1].

  State i precedes response token i, so the other indices agree.
  """
  return jnp.pad(x, ((0, 0), (0, 1)))


def hidden_at_states(
  model: LanguageModel, params: PyTree, episodes: PackedEpisodes
) -> Array:
  """Computes hidden states at the states of a microbatch.

  Returns:
    [M · S, D], or [M · S, D + 1] with an unembedding bias.
  """
  hidden = model.apply(
    {"params": params},
    episodes.tokens,
    episodes.segments,
    episodes.positions,
    query_positions=episodes.state_positions,
    method="hidden",
  )
  return hidden.reshape(-1, hidden.shape[-1])


def logp_at_states(
  model: LanguageModel,
  params: PyTree,
  episodes: PackedEpisodes,
  temperature: float,
) -> Array:
  """Computes log-probabilities [M, S] of response tokens, 0 elsewhere.

  They have no gradient.
  """
  return logp_of_tokens(
    model,
    hidden_at_states(model, params, episodes),
    language_step.unembedding_matrix(model, params),
    episodes.actions,
    episodes.mask,
    temperature,
  )


def logp_of_tokens(
  model: LanguageModel,
  hidden: Array,
  unembedding: Array,
  tokens: Array,
  mask: Array,
  temperature: float,
) -> Array:
  """Computes log-probabilities [M, S] of tokens after states, no gradient.

  Args:
    model: the language model.
    hidden: result of `hidden_at_states`.
    unembedding: [V, D].
    tokens: [M, S] int32, a token after each state.
    mask: [M, S] bool; the result is 0 where it is False.
    temperature: temperature of sampling.
  """
  logp = chunked.token_logp(
    hidden,
    unembedding,
    tokens.reshape(-1),
    mask.reshape(-1),
    temperature=temperature,
    adjust=language_step.adjust(model),
  )
  return logp.reshape(mask.shape)


def scalars_at_states(
  model: ScalarModel, params: PyTree, episodes: PackedEpisodes
) -> Array:
  """Computes the scalar [M, S] of every state."""
  return model.apply(
    {"params": params},
    episodes.tokens,
    episodes.segments,
    episodes.positions,
    query_positions=episodes.state_positions,
  )
