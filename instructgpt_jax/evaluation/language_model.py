"""A language model that scores and continues texts, for tasks and harnesses.

`TextModel` has texts at its edges. Between them, `continuation_rows` packs what
is scored, and `generation` continues prompts in batches. Each process of a run
has the whole model on its own devices, works on its share of the requests, and
gets the results of all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import configs
from instructgpt_jax.data.records import Turn
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import transfer
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import continuation_rows, shares
from instructgpt_jax.evaluation.chat_format import ChatFormat
from instructgpt_jax.evaluation.continuation_rows import Piece
from instructgpt_jax.evaluation.continuation_scores import score_queries
from instructgpt_jax.evaluation.generation import Ending, Generator, Sampling
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.runs.progress import Progress, log_line
from instructgpt_jax.sharding import batch_sharding, batch_shards, replicated
from instructgpt_jax.training import networks, sampling, stage_model
from instructgpt_jax.types import PyTree

_BATCH_TOKENS = {"cpu": 4096}  # by platform
_MORE_TOKENS = 32768  # of all other platforms
_ROWS = 16  # prompts that are continued together


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
  """The language model of a checkpoint, between texts.

  In texts, names of special tokens such as <|im_end|> are these tokens: chat
  templates write them.

  Attributes:
    tokenizer: its tokenizer.
    context: most tokens that it reads at a time.
    prefix_id: token that is the context of texts without one: the tokenizer's
      beginning-of-text, or its end-of-text.
  """

  def __init__(
    self,
    checkpoint: str,
    *,
    batch_size: int | None = None,
    context: int | None = None,
    dtype: str = "",
  ):
    """Loads a model on the devices of this process.

    Args:
      checkpoint: workdir of a stage, a Hugging Face directory or a GGUF file.
      batch_size: rows of a batch; None chooses for the devices. Results depend
        on it only by rounding.
      context: most tokens that are read at a time; None is the model's limit.
      dtype: type of activations, such as "bfloat16"; "" is the checkpoint's.

    Raises:
      UserError: there is no language model, or a setting is invalid.
    """
    stage = stage_model.open_stage(
      checkpoint, kind=stage_model.LANGUAGE, field="checkpoint"
    )
    if dtype:
      stage = _with_dtype(stage, dtype)
    limit = stage.model_config.max_seq_len
    check_range("context", context, 2, limit)
    check_range("batch_size", batch_size, 1, None)
    mesh = _local_mesh()
    params = networks.load_params(stage, mesh)
    self._set(stage.network, params, ChatFormat.of_stage(stage), mesh)
    self.context = context or limit
    self._batch_size = batch_size

  @classmethod
  def of_network(
    cls,
    network: LanguageModel,
    params: PyTree,
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    batch_size: int | None = None,
  ) -> TextModel:
    """Wraps a network that is loaded already.

    Args:
      network: the network.
      params: its parameters.
      tokenizer: its tokenizer.
      mesh: mesh that they are on. In a run of several processes each process
        gets a copy of all parameters.
      batch_size: rows of a batch; None chooses for the devices.
    """
    model = cls.__new__(cls)
    if jax.process_count() > 1:
      mesh, whole = _local_mesh(), transfer.allgather(params)
      params = jax.device_put(whole, replicated(mesh))
    model._set(network, params, ChatFormat(tokenizer), mesh)
    model._batch_size = batch_size
    return model

  def _set(
    self,
    network: LanguageModel,
    params: PyTree,
    chat: ChatFormat,
    mesh: Mesh,
  ) -> None:
    self._model, self._params, self._mesh = network, params, mesh
    self._chat, self.tokenizer = chat, chat.tokenizer
    self.context: int = network.config.max_seq_len
    self.prefix_id = self.tokenizer.bos_id
    if self.prefix_id < 0:
      self.prefix_id = self.tokenizer.document_end_id

  @property
  def config(self) -> configs.Model:
    """Returns the network's configuration."""
    return self._model.config

  @property
  def num_params(self) -> int:
    """Returns the number of parameters, with those of padding."""
    return sum(x.size for x in jax.tree.leaves(self._params))

  def encode(self, text: str, *, begin: bool = True) -> list[int]:
    """Encodes a text.

    Args:
      text: the text.
      begin: whether the ids begin with those that the tokenizer begins texts
        with; they are not repeated where the text names them.
    """
    return self._encode([text], begin=begin)[0]

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes ids; special tokens are left out."""
    return self.tokenizer.decode(ids)

  def chat(
    self,
    turns: Sequence[Turn] | Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    """Writes a conversation by the model's chat template.

    A stage whose tokenizer has none writes the tags that it was trained on.

    Args:
      turns: turns, or mappings with `role` and `content`.
      add_generation_prompt: whether an assistant's turn is opened at the end;
        else the text ends with that of the last turn, which can be continued.

    Raises:
      UserError: `no_chat_template`; or the template refuses the conversation.
    """
    return self._chat.write(
      [
        t if isinstance(t, Turn) else Turn(t["role"], t["content"])
        for t in turns
      ],
      reply_follows=add_generation_prompt,
    )

  def log_likelihoods(
    self, pairs: Sequence[tuple[str, str]]
  ) -> list[LogLikelihood]:
    """Scores continuations of contexts.

    Blanks at the end of a context count to the continuation, since most
    tokenizers have them at the beginning of words. A context that is too long
    is cut from the left. An empty one is `prefix_id`.

    Args:
      pairs: (context, continuation) texts.

    Returns:
      The log-likelihood of each continuation, in order.

    Raises:
      UserError: the model's logits are not finite.
    """
    part = shares.share(pairs)
    results = self._score_contexts(self.encode_pairs(pairs[part]))
    return [LogLikelihood(*r) for r in shares.gather(results, pairs)]

  def log_likelihoods_of_ids(
    self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
  ) -> list[LogLikelihood]:
    """Scores continuations of contexts that are encoded already.

    Args:
      requests: ids of each context, at least one, and of its continuation. A
        context that is too long is cut from the left.

    Returns:
      The log-likelihood of each continuation, in order.

    Raises:
      UserError: the model's logits are not finite.
    """
    results = self._score_contexts(requests[shares.share(requests)])
    return [LogLikelihood(*r) for r in shares.gather(results, requests)]

  def _score_contexts(
    self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
  ) -> list[tuple[float, bool, int]]:
    """Scores continuations, and says how many contexts are cut."""
    cuts = sum(
      len(context) > max(1, self.context + 1 - len(ids))
      for context, ids in requests
    )
    self._tell_of_cuts(cuts, len(requests))
    return self._score(requests, "scoring")

  def rolling_log_likelihoods(
    self, texts: Sequence[str], *, score_begin: bool = False
  ) -> list[LogLikelihood]:
    """Scores whole texts.

    A text longer than the context is cut into windows; each token is scored
    once, and the first after `prefix_id`.

    Args:
      texts: the texts.
      score_begin: whether ids that the tokenizer begins texts with are scored
        as well, after `prefix_id`, as lm-evaluation-harness does.

    Returns:
      The log-likelihood of each text, in order.

    Raises:
      UserError: the model's logits are not finite.
    """
    part = shares.share(texts)
    requests = [
      ([self.prefix_id], ids)
      for ids in self._encode(texts[part], begin=score_begin)
    ]
    results = self._score(requests, "scoring texts")
    return [LogLikelihood(*r) for r in shares.gather(results, texts)]

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
    """Continues prompts.

    A text ends before the first stop string, before end-of-text, or after
    `max_tokens`. A prompt that leaves no room for them is cut from the left.

    Args:
      prompts: the prompts; an empty one is `prefix_id`.
      stop: stop strings, also names of special tokens; empty ones do not
        count.
      max_tokens: most tokens of a continuation.
      temperature: 0 takes the most likely token.
      top_p: probability mass of the most likely tokens to draw from.
      top_k: number of most likely tokens to draw from; 0 is all.
      seed: seed of the draws, which depend on it and on a prompt's place.

    Returns:
      The continuation of each prompt, decoded by itself: tokenizers of
      SentencePiece leave out its first space.

    Raises:
      UserError: a setting is invalid, or the model's logits are not finite.
    """
    check_range("max_tokens", max_tokens, 1, self.context - 1)
    check_range("temperature", temperature, 0.0, None)
    check_range("top_p", top_p, 0.0, 1.0)
    check_range("top_k", top_k, 0, None)
    part = shares.share(prompts)
    room = self.context - max_tokens
    requests = self._encode(prompts[part])
    self._tell_of_cuts(sum(len(ids) > room for ids in requests), len(requests))
    encoded = [
      np.array((ids or [self.prefix_id])[-room:], np.int32) for ids in requests
    ]
    numbered = list(zip(range(len(prompts))[part], encoded, strict=True))
    texts: dict[int, str] = {}
    with Progress(
      len(numbered), "generating", unit="prompt", compiles=True
    ) as progress:
      for batch in self._generator.generate(
        numbered,
        ending=self._ending(stop, max_tokens),
        settings=Sampling(float(temperature), top_k, float(top_p)),
        seed=seed,
        batch_size=self._batch_size or _ROWS,
      ):
        texts |= batch
        progress.update(len(batch))
    return shares.gather([texts[number] for number, _ in numbered], prompts)

  def encode_pairs(
    self, pairs: Sequence[tuple[str, str]]
  ) -> list[tuple[list[int], list[int]]]:
    """Encodes contexts and continuations as `log_likelihoods` does.

    The ids of a continuation are those that the whole text has more than the
    context. Where it has no more, because a token spans the border, the
    continuation is encoded by itself.
    """
    contexts = [context.rstrip() for context, _ in pairs]
    wholes = [context + text for context, text in pairs]
    unique = list(dict.fromkeys([*contexts, *wholes]))
    ids_of = dict(zip(unique, self._encode(unique), strict=True))
    result = []
    for context, whole in zip(contexts, wholes, strict=True):
      text = whole[len(context) :]
      if context:
        before, ids = ids_of[context], ids_of[whole][len(ids_of[context]) :]
        if text and not ids:
          ids = self.tokenizer.encode_after([text], [context])[0]
      else:
        before, ids = [self.prefix_id], self.encode(text, begin=False)
        if ids[:1] == before and len(ids) > 1:
          ids = ids[1:]
      result.append((before, ids))
    return result

  def _tell_of_cuts(self, cuts: int, count: int) -> None:
    """Says how many contexts are cut from the left, if any."""
    if cuts:
      log_line(
        f"{cuts} of {count} contexts are cut from the left: the model reads"
        f" {self.context} tokens"
      )

  def _ending(self, stop: Sequence[str], max_tokens: int) -> Ending:
    """Tells stop strings from names of special tokens, which no text has."""
    ids = {text: self.tokenizer.token_id(text) for text in filter(None, stop)}
    special = {
      i
      for text, i in ids.items()
      if i >= 0 and self.tokenizer.special_token(i) == text
    }
    return Ending(tuple(ids), frozenset(special), max_tokens)

  def _encode(
    self, texts: Sequence[str], *, begin: bool = True
  ) -> list[list[int]]:
    """Encodes many texts in one call."""
    ahead = list(self.tokenizer.begin) if begin else []
    return [
      ids if ids[: len(ahead)] == ahead else [*ahead, *ids]
      for ids in self.tokenizer.encode_marked(texts)
    ]

  def _score(
    self,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    description: str,
  ) -> list[tuple[float, bool, int]]:
    """Scores the ids of continuations after those of their contexts."""
    owners: list[int] = []
    pieces: list[Piece] = []
    for owner, (context, ids) in enumerate(requests):
      for piece in continuation_rows.windows(context, ids, self.context):
        owners.append(owner)
        pieces.append(piece)
    totals = np.zeros(len(requests))
    greedy = np.ones(len(requests), bool)
    platform = self._mesh.devices.flat[0].platform
    with Progress(
      len(pieces), description, unit="request", compiles=True
    ) as progress:
      for batch in continuation_rows.batches(
        pieces,
        max_length=self.context,
        tokens=_BATCH_TOKENS.get(platform, _MORE_TOKENS),
        max_rows=self._batch_size,
        shards=batch_shards(self._mesh),
      ):
        logp, is_top = self._run(batch)
        for index, row, start in batch.members:
          part = slice(start, start + len(pieces[index].ids))
          totals[owners[index]] += logp[row, part].sum(dtype=np.float64)
          greedy[owners[index]] &= bool(is_top[row, part].all())
        progress.update(len(batch.members))
    sampling.require_finite(totals)
    counts = [len(ids) for _, ids in requests]
    return list(zip(totals.tolist(), greedy.tolist(), counts, strict=True))

  def _run(
    self, batch: continuation_rows.Batch
  ) -> tuple[np.ndarray, np.ndarray]:
    """Computes `score_queries` of a batch."""
    arrays = jax.device_put(batch[:5], batch_sharding(self._mesh))
    chunks = jax.device_put(batch.chunks, replicated(self._mesh))
    return jax.device_get(
      score_queries(self._mesh)(
        self._params, *arrays, chunks, model=self._model, chunk=batch.chunk
      )
    )

  @functools.cached_property
  def _generator(self) -> Generator:
    return Generator(self._model, self._params, self.tokenizer, self._mesh)


def _local_mesh() -> Mesh:
  """Returns the mesh of this process's devices."""
  return mesh_lib.make_mesh(configs.Mesh(), jax.local_devices())


def _with_dtype(stage: stage_model.Stage, dtype: str) -> stage_model.Stage:
  """Returns a stage whose activations have another type."""
  config = dataclasses.replace(stage.model_config, dtype=dtype)
  return dataclasses.replace(stage, model_config=config)


def check_range(
  name: str, value: float | None, least: float, most: float | None
) -> None:
  """Refuses what is no number of a range, whole where its start is an int.

  None is always accepted.

  Raises:
    UserError: `out_of_range`.
  """
  if value is None:
    return
  kinds = int if isinstance(least, int) else int | float
  is_number = isinstance(value, kinds) and not isinstance(value, bool)
  if is_number and least <= value and (most is None or value <= most):
    return
  limits = f"at least {least}" if most is None else f"{least} to {most}"
  raise UserError(
    f"{value!r} is not a number that is possible here",
    field=name,
    fix=f"give {limits}",
    code="out_of_range",
  )
