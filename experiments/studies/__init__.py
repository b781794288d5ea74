"""The paper's findings, one file each; `ALL` in the order of the report."""

from experiments.studies import (
  choices,
  failures,
  kl_coef,
  kl_with_ptx,
  learning_rate,
  model_size,
  overoptimization,
  policy_init,
  ptx_coef,
  reward_limits,
  reward_model,
  sft_epochs,
  weak_rewards,
)

ALL = {
  module.STUDY.name: module.STUDY
  for module in (
    model_size,
    ptx_coef,
    kl_coef,
    kl_with_ptx,
    policy_init,
    learning_rate,
    overoptimization,
    reward_model,
    reward_limits,
    weak_rewards,
    sft_epochs,
    failures,
    choices,
  )
}
