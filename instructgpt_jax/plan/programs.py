"""What an experiment compiles, with shapes in place of arrays."""

from __future__ import annotations

from instructgpt_jax import config as config_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.plan import ppo, supervised
from instructgpt_jax.plan.work import Work
from instructgpt_jax.runtime.mesh import AnyMesh


def work(
  config: config_lib.Experiment,
  mesh: AnyMesh,
  platform: str,
  reward_model: config_lib.Model | None = None,
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
  if isinstance(config, config_lib.PretrainExperiment):
    return supervised.pretrain(config, mesh)
  if isinstance(config, config_lib.SftExperiment):
    return supervised.sft(config, mesh)
  if isinstance(config, config_lib.RewardExperiment):
    return supervised.reward(config, mesh, platform)
  if isinstance(config, config_lib.PpoExperiment):
    return ppo.ppo(config, mesh, reward_model)
  raise UserError(
    "has no programs of its own",
    field="--experiment",
    fix="give pretrain, sft, policy_init, reward, ppo or ppo_ptx",
  )
