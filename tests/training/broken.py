"""A program with a defect: `python -m tests.training.broken DEFECT NAME …`.

Breaks one part of an experiment, then runs it; its checks must fail.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from typing import Any

import jax

from instructgpt_jax.steps import ppo as ppo_step
from instructgpt_jax.training import networks, ppo_checks, ppo_programs


def _moved(tree: Any) -> Any:
  return jax.tree.map(lambda x: x * 1.05, tree)


def _one_bit(tree: Any) -> Any:
  """Changes the last bit of one value."""
  leaves, form = jax.tree.flatten(tree)
  first = leaves[0]
  bits = jax.lax.bitcast_convert_type(first, "uint32")
  bits = bits.at[(0,) * first.ndim].set(bits[(0,) * first.ndim] ^ 1)
  leaves[0] = jax.lax.bitcast_convert_type(bits, first.dtype)
  return jax.tree.unflatten(form, leaves)


def wrong_cache() -> None:
  """Makes decoding differ from the full pass."""
  honest = ppo_programs.generate

  def generate(*args, **kwargs):
    rollout = honest(*args, **kwargs)
    return type(rollout)(**(vars(rollout) | {"logp": rollout.logp + 1e-3}))

  vars(ppo_programs)["generate"] = generate


def other_reference() -> None:
  """Makes the initial policy differ from its reference."""
  honest = networks.train_state

  def train_state(network, params, *rest):
    return honest(network, _moved(params), *rest)

  vars(networks)["train_state"] = train_state


def stale_rollout() -> None:
  """Records log-probabilities of a policy other than the updated one."""
  honest = ppo_step.update

  def update(state, *args, **kwargs):
    policy = type(state.policy)(
      **(vars(state.policy) | {"params": _moved(state.policy.params)})
    )
    return honest(
      type(state)(**(vars(state) | {"policy": policy})), *args, **kwargs
    )

  vars(ppo_step)["update"] = update


def moving_reference() -> None:
  """Changes the reference by one bit."""
  honest = ppo_checks.check_first_rollout

  def check_first_rollout(compare, policy, frozen, *args, **kwargs):
    gaps = honest(compare, policy, frozen, *args, **kwargs)
    frozen["reference"] = _one_bit(frozen["reference"])
    return gaps

  vars(ppo_checks)["check_first_rollout"] = check_first_rollout


DEFECTS: dict[str, Callable[[], None]] = {
  f.__name__: f
  for f in (
    wrong_cache,
    other_reference,
    stale_rollout,
    moving_reference,
  )
}

if __name__ == "__main__":
  _, defect, experiment, *flags = sys.argv
  DEFECTS[defect]()
  sys.argv = [experiment, *flags]
  runpy.run_module(f"experiments.{experiment}", run_name="__main__")
