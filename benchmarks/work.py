"""The work that is timed: models, batches, what counts, and its floor.

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

from instructgpt_jax import config

SEED = 20261120
_STREAMS = {"sft": 1, "pretrain": 1, "reward": 2, "generate": 3, "ppo": 4}
_MODELS = {"S": 0, "M": 1}

MODELS: dict[str, config.Model] = {
  "S": config.Model(vocab_size=8192, width=256, layers=6, heads=8, context=256),
  "M": config.Model(
    vocab_size=50257, width=768, layers=12, heads=12, context=512
  ),
}
OPTIMIZER = config.Optimizer(
  learning_rate=1e-5,
  schedule="constant",
  b1=0.9,
  b2=0.95,
  eps=1e-8,
  weight_decay=0.01,
  clip_norm=1.0,
)
PPO = config.Ppo(
  rollout_batch=16,
  minibatch=8,
  inner_epochs=1,
  kl_coef=0.02,
  clip_ratio=0.2,
  clip_value=0.2,
  gae_lambda=0.95,
  ptx_coef=0.0,
)
ROWS = {"S": (8, 256), "M": (2, 512)}  # of an SFT batch, and their length
PROMPTS, COMPLETIONS, PROMPT_TOKENS, COMPLETION_TOKENS = 4, 4, 128, 64
EPISODES, SHORTEST, LONGEST, NEW_TOKENS = 16, 16, 64, 64


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
  return np.random.default_rng([SEED, _STREAMS[work], _MODELS[model], index])


def _draw(rng: np.random.Generator, model: str, shape) -> np.ndarray:
  return rng.integers(0, pad_id(model), shape, dtype=np.int32)


def sft_batch(model: str, index: int) -> tuple[np.ndarray, np.ndarray]:
  """[B, T] tokens of full rows, and [B] lengths of their masked prompts."""
  rows, length = ROWS[model]
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
  """4 prompts with K completions each, in a random order."""
  rng = _rng("reward", model, index)
  prompts = _draw(rng, model, (PROMPTS, PROMPT_TOKENS))
  replies = _draw(rng, model, (PROMPTS, completions, COMPLETION_TOKENS))
  ranks = [1 + rng.permutation(completions) for _ in range(PROMPTS)]
  return Rankings(prompts, replies, np.stack(ranks).astype(np.int32))


def pairs(found: Rankings) -> Rankings:
  """Each of the K (K − 1) / 2 pairs of a prompt as a ranking of two."""
  count, k = found.ranks.shape
  chosen = np.array(list(itertools.combinations(range(k), 2)))
  return Rankings(
    np.repeat(found.prompts, len(chosen), axis=0),
    found.completions[:, chosen].reshape(count * len(chosen), 2, -1),
    found.ranks[:, chosen].reshape(-1, 2),
  )


def prompt_lengths(model: str, index: int, work: str) -> np.ndarray:
  """[16] lengths, spread evenly from 16 to 64, in random order."""
  spread = np.rint(np.linspace(SHORTEST, LONGEST, EPISODES)).astype(np.int32)
  return _rng(work, model, index).permutation(spread)


def prompts(model: str, index: int, work: str = "generate") -> list[np.ndarray]:
  """16 prompts' tokens; each is to be answered with exactly 64 tokens."""
  rng = _rng(work, model, 1_000_000 + index)
  lengths = prompt_lengths(model, index, work)
  return [_draw(rng, model, n) for n in lengths]


def units(
  work: str, model: str, completions: int = COMPLETIONS
) -> dict[str, int]:
  """What one step counts, by name."""
  if work in ("sft", "pretrain"):
    return {"tokens": math.prod(ROWS[model])}
  if work == "reward":
    return {
      "comparisons": PROMPTS * math.comb(completions, 2),
      "completions": PROMPTS * completions,
    }
  new = {"new_tokens": EPISODES * NEW_TOKENS}
  return new if work == "generate" else {"episodes": EPISODES} | new


@dataclasses.dataclass(frozen=True)
class _Cost:
  """Operations of one model's parts."""

  model: config.Model

  @property
  def weights(self) -> int:
    """Matrix weights of the blocks."""
    return 12 * self.model.layers * self.model.width**2

  def head(self, tokens: int) -> int:
    return 2 * self.model.vocab_size * self.model.width * tokens

  def attended(self, keys: int) -> int:
    """Of one token that attends to so many keys."""
    return 4 * self.model.layers * self.model.width * keys

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
  cost = _Cost(MODELS[model])
  if work in ("sft", "pretrain"):
    rows, length = ROWS[model]
    blocks = 3 * cost.rows([length] * rows)
    return Operations(blocks, blocks + 3 * cost.head(rows * length))
  if work == "reward":
    length = PROMPT_TOKENS + COMPLETION_TOKENS
    blocks = 3 * cost.rows([length] * PROMPTS * completions)
    return Operations(blocks, blocks)
  lengths = [int(n) for n in prompt_lengths(model, 0, work)]
  answered = EPISODES * NEW_TOKENS
  rollout = cost.sampled(lengths, NEW_TOKENS)
  if work == "generate":
    return Operations(rollout, rollout + cost.head(answered))
  # The reference, the reward model and values; then both networks train.
  passes = cost.rows([n + NEW_TOKENS for n in lengths])
  blocks = rollout + 3 * passes + 3 * 2 * passes
  return Operations(blocks, blocks + cost.head(answered) * (1 + 1 + 3))


def decode_bytes(model: str) -> int:
  """Bytes that one decode step must read: weights, and the cache so far.

  The mean over steps and prompts; the embedding is read whole by the LM head,
  of positions and of the embedding's rows only what is looked up, which is
  little.
  """
  cost, c = _Cost(MODELS[model]), MODELS[model]
  fed = (SHORTEST + LONGEST) / 2 + NEW_TOKENS / 2
  cache = 2 * c.layers * c.width * EPISODES * fed
  return round(4 * (cost.weights + c.vocab_size * c.width + cache))
