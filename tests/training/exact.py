"""Outputs of finished models on rows without padding."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.training import stage_model
from tests.models import twin


@functools.partial(twin.jit, static_argnums=0)
def _apply(network, params, rows, ones, positions):
  return network.apply({"params": params}, rows, ones, positions)


def outputs(network: Any, params: Any, rows: Sequence[Sequence[int]]) -> Any:
  """Returns float64 outputs at every token of rows of one length."""
  tokens = np.asarray(rows, np.int32)
  ones = np.ones_like(tokens)
  positions = np.broadcast_to(
    np.arange(tokens.shape[1], dtype=np.int32), tokens.shape
  )
  values = _apply(network, params, tokens, ones, positions)
  return np.asarray(values, np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Computes log-probabilities of [..., V] logits."""
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Finished:
  """Model and tokenizer of a finished stage."""

  def __init__(self, path: Any):
    self.stage = stage_model.open_stage(str(path))
    self.tokenizer = self.stage.tokenizer
    self.params = checkpoints.load_model(path)

  def encode(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Encodes a prompt, and its reply with end-of-text."""
    data = self.stage.data
    text = f"{data.user_tag} {prompt}{data.turn_separator}{data.assistant_tag}"
    reply = self.tokenizer.encode(f" {completion}")
    return self.tokenizer.encode(text), [*reply, self.tokenizer.eos_id]

  def outputs(self, row: Sequence[int]) -> np.ndarray:
    """Returns the outputs at each token of one row."""
    # One length, so that one program is compiled; later tokens do not matter.
    filled = [*row, *[0] * (self.stage.model_config.max_seq_len - len(row))]
    return outputs(self.stage.network, self.params, [filled])[0][: len(row)]

  def score(self, prompt: str, completion: str) -> float:
    """Returns the scalar at the end-of-text of a reply."""
    before, reply = self.encode(prompt, completion)
    return float(self.outputs([*before, *reply])[-1])

  def token_losses(
    self, prompt: str, completion: str
  ) -> tuple[np.ndarray, np.ndarray]:
    """Computes −log p of prompt tokens after the first, and of the reply."""
    before, reply = self.encode(prompt, completion)
    row = [*before, *reply]
    logp = log_softmax(self.outputs(row))
    losses = -logp[np.arange(len(row) - 1), row[1:]]
    return losses[: len(before) - 1], losses[len(before) - 1 :]
