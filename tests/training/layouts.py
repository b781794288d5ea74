"""Every stage's step on a mesh: `python -m tests.training.layouts MODEL D,F,T`.

Prints as JSON what the steps of a language model, a reward model and PPO-ptx
measure, and the tokens that were sampled.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import configs, sharding
from instructgpt_jax.configs import presets
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import transfer
from instructgpt_jax.models.heads import LanguageModel, ScalarModel
from instructgpt_jax.steps import language, reward
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.steps.ppo_networks import Networks
from instructgpt_jax.training import networks, ppo_programs, supervised
from instructgpt_jax.types import LanguageBatch, PromptBatch, RankingBatch
from tests.models import twin

ROWS, LENGTH, PROMPT, ANSWER = 16, 16, 8, 8
_GPT = configs.Model(
  vocab_size=64, max_seq_len=16, num_layers=1, d_model=32, num_heads=8
)
MODELS = {
  "gpt": _GPT,
  "llama": dataclasses.replace(
    _GPT,
    **twin.LLAMA | dict(num_kv_heads=4, d_ff=48),
    num_layers=2,
    scan_layers=True,
    remat="full",
  ),
}
Made = tuple[Any, Any, state_lib.TrainState]


def _ids(*shape: int, high: int = 60) -> np.ndarray:
  return np.random.default_rng(7).integers(2, high, shape).astype(np.int32)


def _train_state(network: networks.Network, mesh: Mesh) -> Made:
  optimizer = optimizer_lib.make_optimizer(configs.Optimizer(), 10)
  params = networks.init_params(network, jax.random.key(3), mesh)
  return (
    network,
    optimizer,
    networks.train_state(network, params, optimizer, mesh),
  )


def _language_batch() -> LanguageBatch:
  ones = np.ones((ROWS, LENGTH), np.int32)
  weights = np.random.default_rng(1).random((ROWS, LENGTH)) < 0.4
  return LanguageBatch(
    tokens=_ids(ROWS, LENGTH),
    segments=ones,
    positions=np.cumsum(ones, axis=1, dtype=np.int32) - 1,
    weights=weights.astype(np.float32),
  )


def _rankings() -> RankingBatch:
  ones = np.ones((ROWS, 1, LENGTH), np.int32)
  ends = np.tile(np.int32([7, 11, 15]), (ROWS, 1))
  return RankingBatch(
    tokens=_ids(ROWS, 1, LENGTH),
    segments=ones,
    positions=np.cumsum(ones, axis=2, dtype=np.int32) - 1,
    ends=ends[:, None],
    ranks=np.tile(np.int32([2, 1, 3]), (ROWS, 1, 1)),
    valid=np.ones((ROWS, 1, 3), bool),
    ids=np.arange(ROWS, dtype=np.int32)[:, None],
  )


def _measured(metrics: Any) -> dict[str, float]:
  return {k: float(v) for k, v in jax.device_get(metrics).items()}


def _weighed(params: Any) -> float:
  """Returns a number that depends on each value of a tree."""
  return float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(params)))


def _supervised(made: Made, module: Any, batch: Any, mesh: Mesh) -> Any:
  network, optimizer, state = made
  step = supervised.step_program(
    module.train_step, network, optimizer, state, mesh, seed=0, microbatch=8
  )
  state, metrics = step(state, transfer.put_full_batch(batch, mesh), {})
  return _measured(metrics) | {"params": _weighed(state.params)}


def _ppo(c: configs.Model, mesh: Mesh) -> dict[str, Any]:
  experiment = presets.ppo_ptx("tiny")
  experiment = dataclasses.replace(
    experiment,
    data=configs.Data(max_prompt_tokens=PROMPT, max_response_tokens=ANSWER),
    ppo=dataclasses.replace(
      experiment.ppo, rollout_batch=ROWS, minibatch=8, ptx_microbatch=8
    ),
  )
  policy, value = (
    _train_state(network, mesh)
    for network in (LanguageModel(c), ScalarModel(c))
  )
  scalars = jax.device_put(
    tuple(map(jnp.float32, (0.1, 2.0, 0.992))), sharding.replicated(mesh)
  )
  copied = jax.tree.map(jnp.copy, policy[2].params)
  state = state_lib.PpoState(
    policy=policy[2],
    value=value[2],
    ema=copied,
    kl_coef=scalars[0],
    ptx_coef=scalars[1],
    ema_decay=scalars[2],
  )
  programs = ppo_programs.jit_programs(
    experiment,
    Networks(policy[0], (ScalarModel(c),), value[0], policy[1], value[1]),
    state,
    mesh,
    eos_id=0,
    pad_id=1,
  )
  mask = np.arange(PROMPT) >= np.arange(ROWS)[:, None] % 4
  prompts = PromptBatch(
    tokens=_ids(ROWS, PROMPT), mask=mask, ids=np.arange(ROWS, dtype=np.int32)
  )
  key = jax.random.key(5)
  rollout = programs.generate(
    state.policy.params, transfer.put_full_batch(prompts, mesh), key
  )
  experience, _, scored = programs.score_rollout(
    rollout, copied, (value[2].params,), value[2].params, state.kl_coef
  )
  ptx = transfer.put_full_batch(_language_batch(), mesh)
  rows = np.arange(8, dtype=np.int32)
  state, metrics = programs.update(state, experience, rows, ptx)
  return {
    "tokens": np.asarray(rollout.tokens).tolist(),
    "score": _measured(scored),
    "update": _measured(metrics),
    "params": _weighed((state.policy.params, state.value.params, state.ema)),
  }


def main(name: str, sizes: str) -> None:
  """Prints the metrics of all steps on a mesh; 1,1,1 is one device."""
  c = MODELS[name]
  data, fsdp, tensor = map(int, sizes.split(","))
  mesh = mesh_lib.make_mesh(
    configs.Mesh(data=data, fsdp=fsdp, tensor=tensor),
    jax.devices()[: data * fsdp * tensor],
  )
  policy, scores = (
    _train_state(network, mesh)
    for network in (LanguageModel(c), ScalarModel(c))
  )
  measured = {
    "language": _supervised(policy, language, _language_batch(), mesh),
    "reward": _supervised(scores, reward, _rankings(), mesh),
    "ppo": _ppo(c, mesh),
  }
  print(json.dumps(measured))


if __name__ == "__main__":
  main(*sys.argv[1:])
