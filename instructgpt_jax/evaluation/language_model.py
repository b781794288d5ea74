"""A language model that scores and continues texts, for tasks and harnesses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.data.records import Turn
from instructgpt_jax.data.tokenizers.hidden import Hidden
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.training import networks, sampling, stage_model


class LogLikelihood(NamedTuple):
  """The log-likelihood of a continuation.

  Attributes:
    total: nats, summed over its tokens.
    is_greedy: whether each token is the most likely one.
    tokens: number of its tokens.
  """

  total: float
  is_greedy: bool
  tokens: int


class TextModel:
  """A language model of a checkpoint, between texts.

  Attributes:
    tokenizer: its tokenizer.
    context: most tokens that it reads at a time.
  """

  def __init__(self, checkpoint: str, *, batch_size: int = 16):
    """Loads a model.

    Args:
      checkpoint: workdir of a stage, a Hugging Face directory or a GGUF file.
      batch_size: rows decoded together.

    Raises:
      UserError: it has no language model.
    """
    stage = stage_model.open_stage(
      checkpoint, kind=stage_model.LANGUAGE, field="checkpoint"
    )
    self._mesh = mesh_lib.make_mesh(configs.Mesh(), jax.local_devices())
    self._model = stage.network
    self._params = networks.load_params(stage, self._mesh)
    self._data = stage.data
    self._batch_size = batch_size
    self.tokenizer = stage.tokenizer
    self.context: int = stage.model_config.max_seq_len

  def encode(self, text: str, *, begin: bool = True) -> list[int]:
    """Encodes a text, with the special tokens that it names.

    Args:
      text: the text.
      begin: whether it begins with the ids that the tokenizer begins texts
        with, unless it names them.
    """
    tokenizer = self.tokenizer
    (ids,) = tokenizer._encode_written(
      [text], Hidden([], tokenizer._special, "")
    )
    ahead = list(tokenizer.begin)
    if not begin or (ahead and list(ids[: len(ahead)]) == ahead):
      return list(ids)
    return [*ahead, *ids]

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes ids; special tokens are left out."""
    return self.tokenizer.decode(ids)

  def chat(
    self,
    turns: Sequence[Turn] | Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    """Writes a conversation by the model's chat template.

    Args:
      turns: turns, or mappings with `role` and `content`.
      add_generation_prompt: whether an assistant's turn is opened at the end.

    Raises:
      UserError: the tokenizer has no chat template.
    """
    template = self.tokenizer.template
    if template is None:
      raise UserError(
        "its tokenizer has no chat template",
        fix="ask without a chat template",
        code="no_chat_template",
      )
    return template.render(
      [
        t if isinstance(t, Turn) else Turn(t["role"], t["content"])
        for t in turns
      ],
      reply_follows=add_generation_prompt,
    )

  def log_likelihoods(
    self, pairs: Sequence[tuple[str, str]]
  ) -> list[LogLikelihood]:
    """Scores continuations of contexts, in order."""
    return [self._score(*self._encode_pair(*pair)) for pair in pairs]

  def rolling_log_likelihoods(
    self, texts: Sequence[str]
  ) -> list[LogLikelihood]:
    """Scores whole texts, of any length, in order."""
    results = []
    for text in texts:
      ids = [self._prefix_id, *self.encode(text)]
      parts = []
      for start in range(1, len(ids), self.context):
        window = ids[start : start + self.context]
        before = ids[:start][-(self.context + 1 - len(window)) :]
        parts.append(self._score(before, window))
      results.append(
        LogLikelihood(
          sum(p.total for p in parts),
          all(p.is_greedy for p in parts),
          sum(p.tokens for p in parts),
        )
      )
    return results

  def generate(
    self,
    prompts: Sequence[str],
    *,
    stop: Sequence[str] = (),
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
  ) -> list[str]:
    """Continues prompts, up to a stop string or the end of the text."""
    if not prompts:
      return []
    if top_p != 1.0 or top_k:
      raise NotImplementedError("top_p and top_k")
    room = max(1, self.context - max_tokens)
    rollout = sampling.respond(
      self._model,
      self._params,
      [np.array(self._context_ids(p)[-room:], np.int32) for p in prompts],
      jax.random.key(seed),
      sampling=sampling.sampling_params(
        self.tokenizer,
        max_new_tokens=max_tokens,
        temperature=temperature,
        batch_size=self._batch_size,
      ),
      mesh=self._mesh,
    )
    answers = np.asarray(rollout.tokens)[:, -max_tokens:]
    results = []
    for row, mask in zip(
      answers, np.asarray(rollout.response_mask), strict=True
    ):
      text = self.decode(row[mask].tolist())
      for end in stop:
        text = text.split(end)[0]
      results.append(text)
    return results

  @property
  def _prefix_id(self) -> int:
    tokenizer = self.tokenizer
    return (
      tokenizer.bos_id if tokenizer.bos_id >= 0 else (tokenizer.document_end_id)
    )

  def _context_ids(self, text: str) -> list[int]:
    return self.encode(text) or [self._prefix_id]

  def _encode_pair(
    self, context: str, continuation: str
  ) -> tuple[list[int], list[int]]:
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if not stripped:
      return [self._prefix_id], self.encode(continuation, begin=False)
    before = self.encode(stripped)
    return before, self.encode(stripped + continuation)[len(before) :]

  def _score(self, before: Sequence[int], ids: Sequence[int]) -> LogLikelihood:
    tokens = np.array([*before, *ids], np.int32)[-self.context - 1 :]
    count = len(tokens) - 1
    width = min(self.context, -(-count // 64) * 64)
    row = np.zeros((1, width), np.int32)
    row[0, :count] = tokens[:-1]
    segments = np.zeros((1, width), np.int32)
    segments[0, :count] = 1
    logits = _logits(
      self._params,
      row,
      segments,
      np.arange(width, dtype=np.int32)[None],
      model=self._model,
    )
    logits = np.asarray(logits[0, count - len(ids) : count], np.float64)
    targets = tokens[len(tokens) - len(ids) :]
    logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return LogLikelihood(
      float(logp[np.arange(len(ids)), targets].sum()),
      bool((logits.argmax(axis=1) == targets).all()),
      len(ids),
    )


def _apply(params: Any, tokens, segments, positions, *, model) -> jax.Array:
  return model.apply({"params": params}, tokens, segments, positions)


_logits = jax.jit(_apply, static_argnames="model")
