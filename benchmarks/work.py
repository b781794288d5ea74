"""The timed work: models, batches, units, FLOPs and lower bounds.

The same seed gives the same tokens as the peers' harness gives everybody, which
`tests/benchmarks` checks where that harness is at hand. Multiply-add is two
operations; padding and recomputation never count.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.configs import presets

SEED = 20261120
_STREAMS = {"sft": 1, "pretrain": 1, "reward": 2, "generate": 3, "ppo": 4}


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of a model's batches; the defaults are the peers'."""

  rows: int  # of an SFT batch
  length: int  # of each
  prompts: int = 4  # of a batch of rankings
  prompt_tokens: int = 128
  completion_tokens: int = 64
  episodes: int = 16  # rows that are sampled
  minibatch: int = 8  # of them
  shortest: int = 16  # prompt that is sampled from
  longest: int = 64
  new_tokens: int = 64


_LARGE = {
  name: dataclasses.replace(presets.MODELS[name], vocab_size=50257)
  for name in ("125m", "350m", "1.3b")
}
_TINY = dataclasses.replace(
  _LARGE["125m"],
  vocab_size=512,
  d_model=32,
  num_layers=2,
  num_heads=2,
  max_seq_len=128,
)
# S and M are the peers'. "-chat" is DeepSpeed-Chat's: 256 tokens after 256.
MODELS: dict[str, configs.Model] = {
  "S": configs.Model(
    vocab_size=8192, d_model=256, num_layers=6, num_heads=8, max_seq_len=256
  ),
  "M": configs.Model(
    vocab_size=50257, d_model=768, num_layers=12, num_heads=12, max_seq_len=512
  ),
  "tiny": _TINY,
  "tiny-chat": _TINY,
  **_LARGE,
  "1.3b-chat": _LARGE["1.3b"],
}
_LARGE_SHAPE = Shape(
  rows=8,
  length=2048,
  prompts=16,
  prompt_tokens=256,
  completion_tokens=128,
  episodes=64,
  minibatch=32,
  shortest=64,
  longest=256,
  new_tokens=256,
)
SHAPES: dict[str, Shape] = {
  "S": Shape(8, 256),
  "M": Shape(2, 512),
  "tiny": Shape(
    4,
    64,
    2,
    16,
    8,
    episodes=4,
    minibatch=2,
    shortest=4,
    longest=8,
    new_tokens=8,
  ),
  "tiny-chat": Shape(
    4, 64, episodes=4, minibatch=4, shortest=8, longest=8, new_tokens=8
  ),
  **dict.fromkeys(_LARGE, _LARGE_SHAPE),
  "1.3b-chat": dataclasses.replace(
    _LARGE_SHAPE, episodes=32, minibatch=32, shortest=256
  ),
}
COMPLETIONS = 4
OPTIMIZER = configs.Optimizer(
  learning_rate=1e-5,
  schedule="constant",
  b1=0.9,
  b2=0.95,
  eps=1e-8,
  weight_decay=0.01,
  clip_norm=1.0,
)


def ppo(model: str) -> configs.Ppo:
  """One rollout, and one epoch over it."""
  return configs.Ppo(
    rollout_batch=SHAPES[model].episodes,
    minibatch=SHAPES[model].minibatch,
    inner_epochs=1,
    kl_coef=0.02,
    clip_ratio=0.2,
    clip_value=0.2,
    gae_lambda=0.95,
    ptx_coef=0.0,
  )


class Operations(NamedTuple):
  """Operations of one step: of the blocks, and with the LM head."""

  blocks: int
  total: int


def end_id(model: str) -> int:
  """End-of-text; it is never drawn into a batch."""
  return MODELS[model].vocab_size - 1


def pad_id(model: str) -> int:
  return MODELS[model].vocab_size - 2


def _rng(work: str, model: str, index: int) -> np.random.Generator:
  stream = [SEED, _STREAMS[work], list(MODELS).index(model), index]
  return np.random.default_rng(stream)


def _draw(rng: np.random.Generator, model: str, shape) -> np.ndarray:
  return rng.integers(0, pad_id(model), shape, dtype=np.int32)


def sft_batch(model: str, index: int) -> tuple[np.ndarray, np.ndarray]:
  """[B, T] tokens of full rows, and [B] lengths of their masked prompts."""
  rows, length = SHAPES[model].rows, SHAPES[model].length
  rng = _rng("sft", model, index)
  tokens = _draw(rng, model, (rows, length))
  prompts = rng.integers(length // 4, length // 2 + 1, rows)
  return tokens, prompts.astype(np.int32)


class Rankings(NamedTuple):
  """One reward-model batch; every length is the same."""

  prompts: np.ndarray  # [P, prompt tokens] int32
  completions: np.ndarray  # [P, K, completion tokens] int32
  ranks: np.ndarray  # [P, K] int32, 1 is best


def rankings(
  model: str, index: int, completions: int = COMPLETIONS
) -> Rankings:
  """Prompts with K completions each, in a random order."""
  rng, shape = _rng("reward", model, index), SHAPES[model]
  prompts = _draw(rng, model, (shape.prompts, shape.prompt_tokens))
  replies = _draw(
    rng, model, (shape.prompts, completions, shape.completion_tokens)
  )
  ranks = [1 + rng.permutation(completions) for _ in range(shape.prompts)]
  return Rankings(prompts, replies, np.stack(ranks).astype(np.int32))


def pairs(rankings: Rankings) -> Rankings:
  """Each of the K (K − 1) / 2 pairs of a prompt as a ranking of two."""
  count, k = rankings.ranks.shape
  chosen = np.array(list(itertools.combinations(range(k), 2)))
  return Rankings(
    np.repeat(rankings.prompts, len(chosen), axis=0),
    rankings.completions[:, chosen].reshape(count * len(chosen), 2, -1),
    rankings.ranks[:, chosen].reshape(-1, 2),
  )


def prompt_lengths(model: str, index: int, work: str) -> np.ndarray:
  """Lengths of what is sampled from, spread evenly, in random order."""
  shape = SHAPES[model]
  spread = np.linspace(shape.shortest, shape.longest, shape.episodes)
  spread = np.rint(spread).astype(np.int32)
  return _rng(work, model, index).permutation(spread)


def prompts(model: str, index: int, work: str = "generate") -> list[np.ndarray]:
  """Prompts' tokens; all answers are to have the same length."""
  rng = _rng(work, model, 1_000_000 + index)
  lengths = prompt_lengths(model, index, work)
  return [_draw(rng, model, n) for n in lengths]


def units(
  work: str, model: str, completions: int = COMPLETIONS
) -> dict[str, int]:
  """What one step counts, by name."""
  shape = SHAPES[model]
  if work in ("sft", "pretrain"):
    return {"tokens": shape.rows * shape.length}
  if work == "reward":
    return {
      "comparisons": shape.prompts * math.comb(completions, 2),
      "completions": shape.prompts * completions,
    }
  new = {"new_tokens": shape.episodes * shape.new_tokens}
  return new if work == "generate" else {"episodes": shape.episodes} | new


@dataclasses.dataclass(frozen=True)
class _Cost:
  """Operations of one model's parts."""

  model: configs.Model

  @property
  def weights(self) -> int:
    """Matrix weights of the blocks."""
    return 12 * self.model.num_layers * self.model.d_model**2

  def head(self, tokens: int) -> int:
    return 2 * self.model.vocab_size * self.model.d_model * tokens

  def attended(self, keys: int) -> int:
    """Returns the FLOPs of one token that attends to `keys` keys."""
    return 4 * self.model.num_layers * self.model.d_model * keys

  def rows(self, lengths) -> int:
    """Forward passes of whole rows; dense attention, nothing causal saved."""
    return sum(n * (2 * self.weights + self.attended(n)) for n in lengths)

  def sampled(self, lengths, new: int) -> int:
    """Decoding `new` tokens after each prompt; the last is not fed back."""
    total = 0
    for n in lengths:
      fed = n + new - 1
      total += 2 * self.weights * fed + self.attended(fed * (fed + 1) // 2)
    return total


def operations(
  work: str, model: str, completions: int = COMPLETIONS
) -> Operations:
  """Operations of one step of a work, each completion run whole and once."""
  cost, shape = _Cost(MODELS[model]), SHAPES[model]
  if work in ("sft", "pretrain"):
    blocks = 3 * cost.rows([shape.length] * shape.rows)
    head = cost.head(shape.rows * shape.length)
    return Operations(blocks, blocks + 3 * head)
  if work == "reward":
    length = shape.prompt_tokens + shape.completion_tokens
    blocks = 3 * cost.rows([length] * shape.prompts * completions)
    return Operations(blocks, blocks)
  lengths = [int(n) for n in prompt_lengths(model, 0, work)]
  answered = shape.episodes * shape.new_tokens
  rollout = cost.sampled(lengths, shape.new_tokens)
  if work == "generate":
    return Operations(rollout, rollout + cost.head(answered))
  # The reference, the reward model and values; then both networks train.
  passes = cost.rows([n + shape.new_tokens for n in lengths])
  blocks = rollout + 3 * passes + 3 * 2 * passes
  return Operations(blocks, blocks + cost.head(answered) * (1 + 1 + 3))


def decode_bytes(model: str) -> int:
  """Bytes that one decode step must read: weights, and the cache so far.

  The mean over steps and prompts; the embedding is read whole by the LM head,
  of positions and of the embedding's rows only what is looked up, which is
  little.
  """
  cost, c, shape = _Cost(MODELS[model]), MODELS[model], SHAPES[model]
  fed = (shape.shortest + shape.longest + shape.new_tokens) / 2
  cache = 2 * c.num_layers * c.d_model * shape.episodes * fed
  size = 2 if c.dtype == "bfloat16" else 4
  return round(size * (cost.weights + c.vocab_size * c.d_model + cache))
