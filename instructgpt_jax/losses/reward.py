"""The reward model's loss over K ranked completions of a prompt."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from instructgpt_jax.losses import masked
from instructgpt_jax.types import Array


def comparable_pairs(ranks: ArrayLike, valid: ArrayLike) -> Array:
  """Marks the ordered pairs (winner, loser) of a ranking; ties are in none.

  Args:
    ranks: […, K] int, 1 is best, equal ranks are ties.
    valid: […, K] bool, False on completions that fill up K.

  Returns:
    […, K, K] bool, True at […, w, l] where completion w beats l.
  """
  ranks, valid = jnp.asarray(ranks), masked.to_bool(valid)
  better = ranks[..., :, None] < ranks[..., None, :]
  return better & valid[..., :, None] & valid[..., None, :]


def count_prompts(ranks: ArrayLike, valid: ArrayLike) -> Array:
  """Counts prompts with at least one pair, the `normalizer` of `ranking_loss`.

  Args:
    ranks: […, K] int.
    valid: […, K] bool.
  """
  has_pair = jnp.any(comparable_pairs(ranks, valid), axis=(-2, -1))
  return jnp.sum(has_pair.astype(jnp.float32))


def _margins(scores: ArrayLike) -> Array:
  """Computes r_w − r_l for all pairs, […, K, K]."""
  scores = masked.to_float32(scores)
  return scores[..., :, None] - scores[..., None, :]


def _won(margins: Array) -> Array:
  """Returns 1 where the winner scores higher, ½ where both score the same."""
  return 0.5 * (jnp.sign(jax.lax.stop_gradient(margins)) + 1)


def pair_accuracy(
  scores: ArrayLike, ranks: ArrayLike, valid: ArrayLike
) -> tuple[Array, Array]:
  """Counts the pairs of each prompt that the scores order correctly.

  Args:
    scores: […, K] scalar rewards.
    ranks: […, K] int, 1 is best.
    valid: […, K] bool.

  Returns:
    […] pairs in the right order (equal scores count ½), and […] pairs.
  """
  pairs = comparable_pairs(ranks, valid)
  won = _won(_margins(scores))
  correct = masked.masked_sum(won, pairs, axis=(-2, -1))
  return correct, jnp.sum(pairs.astype(correct.dtype), axis=(-2, -1))


def pair_losses(scores: ArrayLike, ranks: ArrayLike, valid: ArrayLike) -> Array:
  """Sums −log σ(r_w − r_l) over each prompt's pairs.

  Args:
    scores: […, K] scalar rewards.
    ranks: […, K] int, 1 is best.
    valid: […, K] bool.

  Returns:
    […], to be divided by the number of pairs (`pair_accuracy`).
  """
  pairs = comparable_pairs(ranks, valid)
  losses = -jax.nn.log_sigmoid(jnp.where(pairs, _margins(scores), 0))
  return masked.masked_sum(losses, pairs, axis=(-2, -1))


def ranking_loss(
  scores: ArrayLike,
  ranks: ArrayLike,
  valid: ArrayLike,
  *,
  normalizer: ArrayLike | None = None,
  label_smoothing: float = 0.0,
  grades: ArrayLike | None = None,
) -> tuple[Array, dict[str, Array]]:
  """Computes the ranking loss, a mean over prompts.

  L = mean over prompts of mean over pairs of
      −(1 − ε) log σ(r_w − r_l − m) − ε log σ(−(r_w − r_l − m))

  The paper has ε = 0 and m = 0. It divides by C(K, 2) pairs and drops ties.
  Here the divisor is the number of pairs without ties, so every prompt that has
  a pair weighs the same. With ε > 0 a label is taken to be wrong with
  probability ε. Grades give each pair the margin m = max(0, g_w − g_l), which
  is 0 where they contradict the ranks.

  Sources: Ouyang et al. 2022, arXiv:2203.02155, eq. 1; margins as in Llama 2,
  arXiv:2307.09288, eq. 2.

  Args:
    scores: […, K] scalar rewards.
    ranks: […, K] int, 1 is best, equal ranks are ties.
    valid: […, K] bool, False on completions that fill up K.
    normalizer: prompts with a pair in the whole batch (`count_prompts`), when
      this is one of its microbatches.
    label_smoothing: ε, from 0 to below 0.5.
    grades: […, K] grades in logits; None is m = 0.

  Returns:
    The scalar loss and a dict of scalars. `accuracy` (equal scores count ½),
    `margin`, r_w − r_l, and with grades `target_margin`, m, are averaged as the
    loss is; `pairs` and `prompts` are counts.
  """
  pairs = comparable_pairs(ranks, valid)
  margins = jnp.where(pairs, _margins(scores), 0)
  has_pair = jnp.any(pairs, axis=(-2, -1))

  def average(x: Array) -> Array:
    within = masked.masked_mean(x, pairs, axis=(-2, -1))
    return masked.masked_mean(within, has_pair, normalizer=normalizer)

  metrics = {
    "accuracy": average(_won(margins)),
    "margin": average(jax.lax.stop_gradient(margins)),
    "pairs": jnp.sum(pairs.astype(margins.dtype)),
    "prompts": jnp.sum(has_pair.astype(margins.dtype)),
  }
  logits = margins
  if grades is not None:
    targets = jnp.where(pairs, jax.nn.relu(_margins(grades)), 0)
    metrics["target_margin"] = average(targets)
    logits = margins - targets
  losses = -jax.nn.log_sigmoid(logits)
  if label_smoothing:
    # −log σ(−x) = x − log σ(x)
    losses += label_smoothing * logits
  return average(losses), metrics
