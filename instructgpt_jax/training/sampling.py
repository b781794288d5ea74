"""Answers to many prompts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax.data import batching, packing
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import compiler_options, transfer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.models.sampling import SamplingParams, generate
from instructgpt_jax.types import Array, PyTree, Rollout

_CALL = 4  # rows of a call over rows decoded at a time


@functools.cache
def _generate(model: LanguageModel, mesh: Mesh) -> Callable[..., Rollout]:
  return jax.jit(
    mesh_lib.with_mesh(mesh, functools.partial(generate, model)),
    static_argnames="sampling",
    compiler_options=compiler_options.decode_compiler_options(
      model.config.d_model, mesh
    ),
  )


def sampling_params(
  tokenizer: Tokenizer,
  *,
  max_new_tokens: int,
  temperature: float = 1.0,
  samples: int = 1,
  batch_size: int = 128,
) -> SamplingParams:
  """Returns how a model with this tokenizer samples.

  Args:
    tokenizer: for the ids that end a response, and padding.
    max_new_tokens: longest response.
    temperature: 0 is greedy.
    samples: responses to each prompt.
    batch_size: rows decoded at a time; where one ends, the next begins.
  """
  return SamplingParams(
    max_new_tokens=max_new_tokens,
    temperature=temperature,
    eos_id=tokenizer.stop_ids,
    pad_id=tokenizer.pad_id,
    samples=samples,
    slots=batch_size,
  )


def respond(
  model: LanguageModel,
  params: PyTree,
  prompts: Sequence[np.ndarray],
  key: Array,
  *,
  sampling: SamplingParams,
  mesh: Mesh,
  on_progress: Callable[[int], Any] | None = None,
) -> Rollout:
  """Samples answers to prompts, in calls of one fixed shape.

  What a prompt is answered depends on the key, on its place among the prompts
  and on the sample's number, not on the batch.

  Args:
    model: the language model.
    params: its parameters.
    prompts: token ids of each prompt.
    key: base random key.
    sampling: how they are sampled, see `sampling_params`.
    mesh: where batches are put.
    on_progress: called with the number of responses of each finished call.

  Returns:
    A rollout of numpy arrays, [prompts · samples] rows; a prompt's samples
    follow each other.
  """
  samples = sampling.samples
  longest = max(map(len, prompts))
  room = max(longest, model.config.max_seq_len - sampling.max_new_tokens)
  width = min(-(-longest // 16) * 16, room)
  size = max(1, _CALL * sampling.slots // samples)
  if len(prompts) * samples <= sampling.slots:
    size = len(prompts)
  size = mesh_lib.round_up_to_shards(size, mesh)
  parts = []
  for batch in batching.prompt_batches(
    prompts,
    batching.BatchSpec(batch_size=size, epochs=1, shuffle=False),
    width=width,
    pad_id=sampling.pad_id,
  ):
    rollout = _generate(model, mesh)(
      params,
      transfer.put_full_batch(batch, mesh),
      key,
      sampling=sampling,
    )
    parts.append(transfer.allgather(rollout))
    if on_progress is not None:
      on_progress(samples * int((batch.ids >= 0).sum()))
  rows = samples * len(prompts)
  rollout = jax.tree.map(lambda *x: np.concatenate(x)[:rows], *parts)
  require_finite(rollout.logp, rollout.response_mask)
  return rollout


def require_finite(logp: Array, mask: Array | None = None) -> None:
  """Refuses answers that were drawn from logits that are not finite.

  Args:
    logp: log-probabilities of the tokens that were drawn; one that is NaN or
      infinite shows that some logit was.
    mask: True where a token was drawn; everywhere when None.

  Raises:
    UserError: some drawn token has no finite log-probability.
  """
  finite = np.isfinite(np.asarray(logp))
  if mask is not None:
    finite |= ~np.asarray(mask, bool)
  if not finite.all():
    raise UserError(
      "the model's logits are not finite",
      fix="its weights are damaged or its training has diverged; use an earlier"
      " checkpoint",
      code="not_finite",
    )


def texts(rollout: Rollout, tokenizer: Tokenizer) -> list[str]:
  """Decodes the answers, without the ids that end them."""
  length = rollout.response_mask.shape[1]
  answers = np.asarray(rollout.tokens)[:, -length:]
  mask = np.asarray(rollout.response_mask)
  mask = mask & ~np.isin(answers, tokenizer.stop_ids)
  return [
    tokenizer.decode_reply(row[used])
    for row, used in zip(answers, mask, strict=True)
  ]


def with_prompts(
  rollout: Rollout, prompts: Sequence[np.ndarray], tokenizer: Tokenizer
) -> Rollout:
  """The same answers after other prompts, one for each row.

  An answer that was given to "prefix, prompt" is judged as an answer to the
  prompt alone.
  """
  length = rollout.response_mask.shape[1]
  width = -(-max(map(len, prompts)) // 8) * 8
  tokens, mask = packing.left_pad(prompts, width, tokenizer.pad_id)
  answers = np.asarray(rollout.tokens)[:, -length:]
  real = np.concatenate([mask, rollout.response_mask], axis=1)
  count = real.astype(np.int32)
  return Rollout(
    tokens=np.concatenate([tokens, answers], axis=1),
    segments=count,
    positions=np.cumsum(count, axis=1, dtype=np.int32) - count,
    response_mask=rollout.response_mask,
    logp=rollout.logp,
    ended=rollout.ended,
  )
