"""Turns conversations into answers, token by token or in batches."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.chat import row_sampler
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.data import encoding, packing
from instructgpt_jax.data.records import Turn
from instructgpt_jax.data.tokenizers import StreamDecoder, Tokenizer
from instructgpt_jax.distributed.compiler_options import decode_compiler_options
from instructgpt_jax.errors import UserError
from instructgpt_jax.models.heads import (
  LanguageModel,
  decoding_params,
)
from instructgpt_jax.models.sampling import SamplingParams, generate
from instructgpt_jax.runs.progress import Progress
from instructgpt_jax.training import sampling as sampling_lib
from instructgpt_jax.training import stage_model
from instructgpt_jax.types import PromptBatch, PyTree


class SamplingOptions(NamedTuple):
  """How tokens are sampled.

  Attributes:
    max_tokens: longest answer; 0 is the limit of the model's config.
    temperature: 0 selects the most likely token.
    top_k: number of most likely tokens to sample from; 0 is all.
    top_p: probability mass of the most likely tokens to sample from.
    seed: seed of the samples.
  """

  max_tokens: int = 0
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0


class ChatSession:
  """A loaded model that answers conversations.

  Attributes:
    max_tokens: longest answer, in tokens.
    max_prompt: longest prompt, in tokens; both together fit max_seq_len.
    max_seq_len: longest prompt and answer together that the model reads.
    data: tags, separator and limits of prompts.
    tokenizer: tokenizer that the model was trained with.
    sampler: samples answers token by token, with settings for each.
  """

  def __init__(
    self,
    model: LanguageModel,
    params: PyTree,
    tokenizer: Tokenizer,
    data: configs.Data,
    options: SamplingOptions,
  ):
    """Prepares a model for sampling.

    Args:
      model: the language model.
      params: its parameters.
      tokenizer: tokenizer that the model was trained with.
      data: tags, separator and limits of its prompts.
      options: how tokens are sampled.

    Raises:
      UserError: `options.max_tokens` does not fit the model's max_seq_len.
    """
    max_seq_len = model.config.max_seq_len
    self.max_tokens = options.max_tokens or min(
      data.max_response_tokens,
      max(max_seq_len - data.max_prompt_tokens, max_seq_len // 2),
    )
    if self.max_tokens >= max_seq_len:
      raise UserError(
        f"{self.max_tokens} tokens do not fit a max_seq_len of {max_seq_len}",
        field="--max_tokens",
        fix=f"use at most {max_seq_len - 1}",
        code="max_tokens_too_large",
      )
    self.max_prompt = min(data.max_prompt_tokens, max_seq_len - self.max_tokens)
    self.data = data
    self.max_seq_len = max_seq_len
    self.tokenizer = tokenizer
    self._model = model
    # Only this copy of the weights is used, so `params` can be freed.
    self._params = jax.jit(functools.partial(decoding_params, model))(params)
    self.sampler = row_sampler.RowSampler(model, self._params, tokenizer.pad_id)
    self._options = options

  def encode(self, turns: Sequence[Turn]) -> np.ndarray:
    """Returns the token ids of a conversation, with a final assistant tag."""
    (ids,) = encoding.encode_prompts([tuple(turns)], self.tokenizer, self.data)
    return ids

  def newest_turns(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Drops the oldest turns of a conversation that is too long.

    The result begins with the system turn, if any, and a user turn.

    Raises:
      UserError: the last message alone is too long.
    """
    system = tuple(t for t in turns if t.role == "system")
    rest = [t for t in turns if t.role != "system"]
    length = 0
    for start, turn in enumerate(rest):
      if turn.role != "user":
        continue
      newest = (*system, *rest[start:])
      length = len(self.encode(newest))
      if length <= self.max_prompt:
        return newest
    raise UserError(
      f"the message has {length} tokens, and at most {self.max_prompt} fit",
      fix=self.fix_for_length(length),
      code="prompt_too_long",
    )

  def check_system_text(self, text: str) -> None:
    """Checks that a system text leaves room for a message.

    Raises:
      UserError: the text and the shortest message do not fit, or the chat
        template allows no system turn.
    """
    turns = (Turn("system", text), Turn("user", "?"))
    try:
      length = len(self.encode(turns)) if text else 0
    except UserError as error:
      if error.code != "template_refuses":
        raise
      raise UserError(
        error.problem, field="--system", fix="omit the flag", code=error.code
      ) from error
    if length > self.max_prompt:
      raise UserError(
        f"has {length} tokens, and at most {self.max_prompt} fit",
        field="--system",
        fix=self.fix_for_length(length),
        code="prompt_too_long",
      )

  def fix_for_length(self, length: int) -> str:
    """Returns the fix for a prompt of more than `max_prompt` tokens."""
    room = self._model.config.max_seq_len - length
    if room > 0 and length <= self.data.max_prompt_tokens:
      return f"start with --max_tokens={room} or less, which leaves room for it"
    return "use fewer words"

  def stream(self, turns: Sequence[Turn], index: int = 0) -> Iterator[str]:
    """Yields the pieces of the answer's text as soon as they are known.

    Args:
      turns: a conversation that ends with a user turn.
      index: folded into the random key; a batch numbers its prompts by it.
    """
    decoder = StreamDecoder(self.tokenizer, self.tokenizer.reply_lead)
    for token in self.sample_tokens(self.encode(turns), index):
      text = decoder.push(token)
      if text:
        yield text
    text = decoder.flush()
    if text:
      yield text

  def sample_tokens(self, ids: np.ndarray, index: int = 0) -> Iterator[int]:
    """Yields the sampled tokens of an answer, without the end token.

    Args:
      ids: token ids of the prompt.
      index: folded into the random key.
    """
    width = packing.smallest_bucket(len(ids), self._buckets)
    options = self._options
    row = row_sampler.Row(
      ids, options.seed, index, options.temperature, options.top_p
    )
    for step in self.sampler.sample(
      [row], width=width, slots=width + self.max_tokens, top_k=options.top_k
    ):
      token = int(step.tokens[0])
      if token in self.tokenizer.stop_ids:
        return
      yield token

  def answer_batch(
    self, prompts: Sequence[np.ndarray], progress: Progress, batch_size: int
  ) -> list[tuple[str, bool]]:
    """Answers many prompts, the shortest first.

    Prompts are grouped by padded length, so that each answer has the tokens of
    `sample_tokens`. `training.sampling.respond` pads all prompts to one length,
    and has no top-k and top-p.

    Args:
      prompts: token ids of prompts of at most `max_prompt` tokens. The position
        of a prompt is folded into its random key.
      progress: counts prompts.
      batch_size: prompts decoded together.

    Returns:
      (text, whether it ended before `max_tokens`) of each prompt, in order.
    """
    by_width: dict[int, list[int]] = {}
    for index, ids in enumerate(prompts):
      width = packing.smallest_bucket(len(ids), self._buckets)
      by_width.setdefault(width, []).append(index)
    answers: dict[int, tuple[str, bool]] = {}
    for width, indices in sorted(by_width.items()):
      for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        # Repeating the last prompt gives all batches one shape.
        rows = batch + batch[-1:] * (batch_size - len(batch))
        texts, ended = self._answer_rows(rows, prompts, width)
        for row, index in enumerate(batch):
          answers[index] = texts[row], bool(ended[row])
        progress.update(len(batch))
    return [answers[index] for index in range(len(prompts))]

  def _answer_rows(
    self, indices: Sequence[int], prompts: Sequence[np.ndarray], width: int
  ) -> tuple[list[str], np.ndarray]:
    """Returns the texts of one batch, and which have ended, [B]."""
    tokens, mask = packing.left_pad(
      [prompts[index] for index in indices], width, self.tokenizer.pad_id
    )
    batch = PromptBatch(
      tokens=tokens, mask=mask, ids=np.array(indices, np.int32)
    )
    key = jax.random.key(self._options.seed)
    rollout = jax.device_get(self._generate(self._params, batch, key))
    sampling_lib.require_finite(rollout.logp, rollout.response_mask)
    return sampling_lib.texts(rollout, self.tokenizer), rollout.ended

  @functools.cached_property
  def _buckets(self) -> tuple[int, ...]:
    """Padded prompt lengths: powers of two, up to the longest prompt."""
    sizes = [16]
    while sizes[-1] < self.max_prompt:
      sizes.append(2 * sizes[-1])
    return tuple(sorted({min(size, self.max_prompt) for size in sizes}))

  @functools.cached_property
  def _compiler_options(self) -> dict[str, Any]:
    return decode_compiler_options(self._model.config.d_model)

  @functools.cached_property
  def _generate(self) -> Callable[..., Any]:
    options = self._options

    def run(params, prompts, key):
      return generate(
        self._model,
        params,
        prompts,
        key,
        SamplingParams(
          max_new_tokens=self.max_tokens,
          temperature=options.temperature,
          top_k=options.top_k,
          top_p=options.top_p,
          eos_id=self.tokenizer.stop_ids,
          pad_id=self.tokenizer.pad_id,
        ),
      )

    return jax.jit(run, compiler_options=self._compiler_options)


def load_session(checkpoint: str, options: SamplingOptions) -> ChatSession:
  """Loads the model of a stage.

  Args:
    checkpoint: workdir of the stage.
    options: how tokens are sampled.

  Raises:
    UserError: the directory has no model that writes text.
  """
  directory = pathlib.Path(checkpoint)
  if directory.is_dir() and not checkpoints.has_model(directory):
    stages = [p for p in directory.iterdir() if checkpoints.has_model(p)]
    if stages:
      names = ", ".join(sorted(p.name for p in stages))
      raise UserError(
        "contains the models of several stages",
        file=checkpoint,
        field="--checkpoint",
        fix=f"use the directory of one of them: {names}",
        code="several_models",
      )
  model, params, tokenizer, config = stage_model.load_policy(checkpoint)
  return ChatSession(model, params, tokenizer, config.data, options)
