"""What an experiment compiles, with shapes in place of arrays."""

from __future__ import annotations

from instructgpt_jax import configs
from instructgpt_jax.distributed.mesh import AnyMesh
from instructgpt_jax.errors import UserError
from instructgpt_jax.planner import ppo, supervised
from instructgpt_jax.planner.work import Work


def work(
  config: configs.Experiment,
  mesh: AnyMesh,
  platform: str,
  reward_model: configs.Model | None = None,
) -> Work:
  """The work of an experiment on a mesh, which may be abstract.

  Args:
    config: the experiment.
    mesh: where it would run.
    platform: of its devices, "cpu", "tpu" or "cuda".
    reward_model: of PPO; the policy's network when None.

  Raises:
    UserError: settings that the experiment refuses, or of another one.
  """
  if isinstance(config, configs.PretrainExperiment):
    return supervised.pretrain(config, mesh)
  if isinstance(config, configs.SftExperiment):
    return supervised.sft(config, mesh)
  if isinstance(config, configs.RewardExperiment):
    return supervised.reward(config, mesh, platform)
  if isinstance(config, configs.PpoExperiment):
    return ppo.ppo(config, mesh, reward_model)
  raise UserError(
    "has no programs of its own",
    field="--experiment",
    fix="give pretrain, sft, policy_init, reward, ppo or ppo_ptx",
  )
