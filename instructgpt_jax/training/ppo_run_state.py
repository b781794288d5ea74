"""The state of a PPO run: its checkpoints, and the policies that it saves."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from instructgpt_jax import sharding
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.distributed import transfer
from instructgpt_jax.models import lora
from instructgpt_jax.runs import files
from instructgpt_jax.steps.state import Metrics, PpoState
from instructgpt_jax.training import (
  fingerprint,
  ppo_checks,
  ppo_held_out,
  stage_model,
  supervised,
  tokenizer_store,
)
from instructgpt_jax.training.ppo_setup import PpoRun
from instructgpt_jax.types import Array, Experience, PyTree

SNAPSHOTS = "snapshots"  # subdirectory of intermediate policies, without EMA


class ScoredRollout(NamedTuple):
  """Experience of an iteration, with the next β and the rollout's metrics."""

  experience: Experience
  next_kl_coef: Array  # β of the next iteration
  metrics: Metrics  # means over the rollout


@dataclasses.dataclass(frozen=True)
class RunState:
  """What changes during a run; `PpoRun` is what stays the same.

  Attributes:
    trained: the `PpoState`: both networks with their optimizers, the averaged
      policy, β, γ_ptx and the average's decay.
    updates: number of updates done.
    scored: rollout of the current iteration, if it has updates left.
    last_metrics: metrics of the last update and of its rollout.
    evaluated: held-out evaluations up to here.
    seconds: duration of the run up to here.
  """

  trained: PpoState
  updates: int = 0
  scored: ScoredRollout | None = None
  last_metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  evaluated: ppo_held_out.Evaluated = ppo_held_out.Evaluated()
  seconds: float = 0.0


def restore(
  run: PpoRun, first_state: PpoState, saver: checkpoints.Checkpointer
) -> RunState:
  """Restores the newest checkpoint, if any, and the data's positions.

  Args:
    run: the run.
    first_state: the state before the first update.
    saver: the run's checkpoints.

  Raises:
    UserError: the checkpoint belongs to other data, other batches or other
      frozen models.
  """

  def abstract_checkpoint(updates: int) -> dict[str, Any]:
    if updates % run.config.ppo.updates_per_iteration == 0:
      return vars(first_state)
    # The iteration is unfinished, so its experience was saved as well.
    experience = _abstract_experience(run, first_state)
    return vars(first_state) | {"experience": experience}

  restored = saver.restore_latest(
    abstract_checkpoint,
    lambda extra: run.data.fingerprint.require_same(extra, run.directory),
  )
  if restored is None:
    return RunState(first_state)
  updates, arrays, extra = restored
  scored = None
  if "experience" in arrays:
    scored = ScoredRollout(*arrays.pop("experience"), extra["rolled"])
  run.data.prompts.set_state(extra["prompts"])
  if run.data.ptx is not None:
    run.data.ptx.set_state(extra["ptx"])
  ppo_checks.require_unchanged(extra["marks"], run.checksums, run.directory)
  evaluated = ppo_held_out.Evaluated(**extra.get("held_out", {}))
  return RunState(
    trained=PpoState(**arrays),
    updates=updates,
    scored=scored,
    last_metrics=extra["last"],
    evaluated=evaluated,
    seconds=extra["seconds"],
  )


def save(
  run: PpoRun,
  run_state: RunState,
  rollout_metrics: Mapping[str, Any],
  prompts_state: Any,
  saver: checkpoints.Checkpointer,
) -> None:
  """Saves a checkpoint: step 6.

  Its arrays are the fields of `PpoState`. In an unfinished iteration they have
  one more key, "experience": a pair of the Experience and the next β. Keys of
  the other values:

    prompts, ptx  states of the data's iterators
    rolled        metrics of the last rollout
    marks         checksums of the frozen models
    last          metrics of the last update
    held_out      fields of `Evaluated`, if there are evaluations
    seconds       duration of the run
    inputs        fingerprint of the data

  Args:
    run: the run.
    run_state: its state.
    rollout_metrics: metrics of the last rollout.
    prompts_state: state of the prompts' iterator to resume from: before those
      of an unfinished iteration.
    saver: the run's checkpoints.
  """
  arrays, evaluated = vars(run_state.trained), run_state.evaluated
  if run_state.scored is not None:
    experience, next_kl_coef, _ = run_state.scored
    arrays = arrays | {"experience": (experience, next_kl_coef)}
  saver.save(
    run_state.updates,
    arrays,
    {
      "prompts": prompts_state,
      "ptx": None if run.data.ptx is None else run.data.ptx.get_state(),
      "rolled": files.to_json_values(rollout_metrics),
      fingerprint.KEY: run.data.fingerprint.as_dict(),
      "marks": run.checksums,
      "last": files.to_json_values(run_state.last_metrics),
      "seconds": run_state.seconds,
      **({"held_out": vars(evaluated)} if run.config.ppo.eval_every else {}),
    },
    supervised.checkpoint_score(
      run.config.run,
      {**rollout_metrics, **evaluated.metrics_at(run_state.updates)},
    ),
  )


def _abstract_experience(run: PpoRun, trained: PpoState) -> Any:
  """Returns shapes and shardings of an experience and of the next β."""
  # A batch is drawn for its shapes only.
  iterator_state = run.data.prompts.get_state()
  prompts = transfer.put_local_batch(next(run.data.prompts), run.mesh)
  run.data.prompts.set_state(iterator_state)
  policy, value = merge_base_params(run, trained)
  rollout = jax.eval_shape(run.programs.generate, policy, prompts, run.key)
  experience, kl_coef, _ = jax.eval_shape(
    run.programs.score_rollout,
    rollout,
    run.frozen["reference"],
    run.frozen["reward"],
    value,
    trained.kl_coef,
  )

  def with_sharding(tree: Any, spec: Any) -> Any:
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec), tree
    )

  return (
    with_sharding(experience, sharding.batch_sharding(run.mesh)),
    with_sharding(kl_coef, sharding.replicated(run.mesh)),
  )


def merge_base_params(run: PpoRun, trained: PpoState) -> tuple[PyTree, PyTree]:
  """Returns all parameters of policy and value network.

  With adapters, only these are trained; the frozen base model is added.
  """
  return (
    lora.merge_trees(run.base.policy, trained.policy.params),
    lora.merge_trees(run.base.value, trained.value.params),
  )


def save_snapshot(run: PpoRun, trained: PpoState, iterations: int) -> None:
  """Saves the policy after some iterations, not averaged, as a stage."""
  directory = pathlib.Path(run.directory) / SNAPSHOTS / f"{iterations:06d}"
  if files.read_complete(directory) is not None:
    return
  tokenizer_store.put_tokenizer(directory, run.start.stage.tokenizer)
  save_policy(run, directory, trained.policy.params, trained)
  files.mark_complete(directory, {"iteration": iterations})


def save_result(run: PpoRun, trained: PpoState) -> None:
  """Writes the policy of a state as the result of the run."""
  save_policy(run, run.directory, ppo_held_out.policy_params(trained), trained)


def save_policy(
  run: PpoRun,
  directory: str | pathlib.Path,
  params: PyTree,
  trained: PpoState,
) -> None:
  """Writes a policy as a stage that other runs can start from.

  Args:
    run: the run.
    directory: workdir of the stage.
    params: parameters of the policy, averaged or not.
    trained: the state that they belong to, for its number of updates.
  """
  stage_model.save_stage_model(
    directory,
    params,
    kind=stage_model.LANGUAGE,
    model=run.networks.policy.config,
    data=run.config.data,
    adapts=run.start.adapts,
    starts_from=run.start.stage,
    stage=run.name,
    step=int(trained.policy.step),
  )
