"""PPO and PPO-ptx: roll out, score, update; again."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from instructgpt_jax import configs, sharding
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.configs import checks
from instructgpt_jax.data import batching, encoding, packing
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import preemption, transfer
from instructgpt_jax.errors import UserError
from instructgpt_jax.models import lora
from instructgpt_jax.models.transformer import LanguageModel, ScalarModel
from instructgpt_jax.runs import files
from instructgpt_jax.runs.metrics import MetricWriter
from instructgpt_jax.runs.progress import Progress
from instructgpt_jax.steps import diagnostics
from instructgpt_jax.steps import optimizer as optimizer_lib
from instructgpt_jax.steps.state import PpoState
from instructgpt_jax.training import fingerprint as fingerprint_lib
from instructgpt_jax.training import (
  inheritance,
  inputs,
  networks,
  ppo_checks,
  ppo_programs,
  stage_model,
  supervised,
  tokenizer_store,
)
from instructgpt_jax.types import PyTree

SNAPSHOTS = "snapshots"  # policies on the way, not averaged

_fingerprint = jax.jit(diagnostics.params_checksum)


def train(
  config: configs.PpoExperiment, directory: str, *, name: str = "ppo"
) -> None:
  """Trains a policy against a reward model (section 3.5, C.4).

  Args:
    config: the experiment; `ppo.ptx_coef` 0 is plain PPO.
    directory: its workdir.
    name: "ppo" or "ppo_ptx".
  """
  if stage_model.is_complete(directory):
    return
  section = config.ppo
  _consistent(config)
  checks.check_lengths(config.data, config.model.max_seq_len)
  start_stage = stage_model.open_stage(
    config.init_from, kind=stage_model.LANGUAGE, field="init_from", run=config
  )
  reward_stage = stage_model.open_stage(
    section.reward_model,
    kind=stage_model.SCALAR,
    field="ppo.reward_model",
    run=config,
  )
  tokenizer = start_stage.tokenizer
  supervised.require_measure(config.run, ["reward"])
  inheritance.require_compatible(
    reward_stage, tokenizer, config.data, "ppo.reward_model"
  )
  mesh = mesh_lib.make_mesh(config.mesh)
  model = LanguageModel(inheritance.model_config(config, tokenizer))
  reward_model = reward_stage.network
  shared: dict[str, PyTree] = {}  # adapters may stand on the same model
  key = jax.random.key(config.seed)
  start = networks.init_params_from(model, start_stage, key, mesh, shared)
  value_model, value_start = _value(
    config, model, start_stage, reward_stage, mesh, shared
  )
  reference = start.whole
  reward_params = networks.load_params(reward_stage, mesh, shared)
  frozen = {"reference": reference, "reward": reward_params}
  below = (start.frozen, value_start.frozen)
  marks = {k: int(_fingerprint(v)) for k, v in frozen.items()}

  updates = ppo_programs.updates_per_iteration(section)
  iterations = -(-section.episodes // section.rollout_batch)
  optimizers = [
    optimizer_lib.make_optimizer(o, updates * iterations)
    for o in ppo_programs.optimizer_configs(config)
  ]
  policy, value = (
    networks.train_state(network, _copied(params), optimizer, mesh)
    for network, params, optimizer in zip(
      (model, value_model),
      (start.trained, value_start.trained),
      optimizers,
      strict=True,
    )
  )
  state = PpoState(
    policy=policy,
    value=value,
    ema=_copied(start.trained) if section.ema_decay else {},
    **jax.device_put(
      {
        "kl_coef": jnp.float32(section.kl_coef),
        "ptx_coef": jnp.float32(section.ptx_coef),
        "ema_decay": jnp.float32(section.ema_decay),
      },
      sharding.replicated(mesh),
    ),
  )
  programs = ppo_programs.jitted(
    config,
    (model, reward_model, value_model),
    optimizers,
    state,
    mesh,
    eos_id=tokenizer.stop_ids,
    pad_id=tokenizer.pad_id,
  )
  sources: dict[str, fingerprint_lib.Source] = {}
  prompts = _prompts(config, tokenizer, mesh, sources)
  ptx = _pretraining(config, tokenizer, mesh, sources)
  fingerprint = fingerprint_lib.Fingerprint(
    {"episodes": section.rollout_batch, "iterations": iterations}, sources
  )
  tokenizer_store.put_tokenizer(directory, tokenizer)

  def snapshot(state: PpoState, iteration: int) -> None:
    folder = pathlib.Path(directory) / SNAPSHOTS / f"{iteration:06d}"
    if files.read_complete(folder) is None:
      tokenizer_store.put_tokenizer(folder, tokenizer)
      stage_model.save_stage_model(
        folder,
        state.policy.params,
        kind=stage_model.LANGUAGE,
        model=model.config,
        data=config.data,
        adapts=start.adapts,
        starts_from=start_stage,
        stage=name,
        step=int(state.policy.step),
      )
      files.mark_complete(folder, {"iteration": iteration})

  state, summary = _run(
    config,
    directory,
    name,
    state,
    below,
    frozen,
    marks,
    programs,
    prompts,
    ptx,
    mesh,
    fingerprint,
    iterations=iterations,
    snapshot=snapshot,
  )
  stage_model.save_stage_model(
    directory,
    state.ema or state.policy.params,
    kind=stage_model.LANGUAGE,
    model=model.config,
    data=config.data,
    adapts=start.adapts,
    starts_from=start_stage,
    stage=name,
    step=int(state.policy.step),
  )
  files.mark_complete(directory, summary)


def _consistent(config: configs.PpoExperiment) -> None:
  """Refuses settings that contradict each other."""
  section = config.ppo
  checks.check_ppo_batches(section)
  if not config.init_from:
    raise UserError(
      "a policy to start from is needed",
      field="init_from",
      fix="give --init_from=DIR, the workdir of policy_init or sft",
    )
  if not section.reward_model:
    raise UserError(
      "a reward model is needed",
      field="ppo.reward_model",
      fix="give --ppo.reward_model=DIR, the workdir of a reward stage",
    )


def _value(
  config: configs.PpoExperiment,
  model: LanguageModel,
  start_stage: stage_model.Stage,
  reward_stage: stage_model.Stage,
  mesh: Mesh,
  shared: dict[str, PyTree],
) -> tuple[ScalarModel, networks.InitialParams]:
  """The value network, with adapters where the policy has some."""
  stage, shape = start_stage, model.config
  if config.ppo.value_from_reward:
    stage, shape = reward_stage, reward_stage.network.config
  shape = dataclasses.replace(
    shape,
    lora_rank=model.config.lora_rank,
    lora_alpha=model.config.lora_alpha,
    lora_layers=model.config.lora_layers,
  )
  network, key = ScalarModel(shape), jax.random.key(config.seed)
  return network, networks.init_params_from(network, stage, key, mesh, shared)


def _copied(tree: PyTree) -> PyTree:
  return jax.tree.map(jnp.copy, tree)


def _prompts(
  config: configs.PpoExperiment,
  tokenizer: Tokenizer,
  mesh: Mesh,
  sources: dict[str, fingerprint_lib.Source],
) -> grain.DatasetIterator:
  """Makes batches of prompts, and adds their fingerprint to `sources`."""
  records = inputs.prompts(config.data, tokenizer).train
  prompts = encoding.encode_prompts(
    [p.turns for p in records], tokenizer, config.data
  )
  sources["data.prompts"] = fingerprint_lib.fingerprint_source(
    config.data.prompts, prompts, train=len(records)
  )
  return batching.prompt_batches(
    prompts,
    batching.BatchSpec(
      batch_size=config.ppo.rollout_batch,
      seed=config.seed,
      **transfer.process_shard(config.ppo.rollout_batch, mesh),
    ),
    width=min(
      max(packing.bucket_lengths(max(map(len, prompts)))),
      config.model.max_seq_len - config.data.max_response_tokens,
    ),
    pad_id=tokenizer.pad_id,
  )


def _pretraining(
  config: configs.PpoExperiment,
  tokenizer: Tokenizer,
  mesh: Mesh,
  sources: dict[str, fingerprint_lib.Source],
) -> grain.DatasetIterator | None:
  """Makes batches of documents; adds their fingerprint to `sources`."""
  section = config.ppo
  if not section.ptx_coef:
    return None
  length = checks.row_length(
    section.ptx_sequence, config.model.max_seq_len, "ppo.ptx_sequence"
  )
  texts = inputs.documents(config.data).train
  rows = inputs.document_rows(texts, tokenizer, length)
  sources["data.pretraining"] = fingerprint_lib.fingerprint_source(
    config.data.pretraining, rows, train=len(texts)
  )
  size = section.minibatch * section.ptx_ratio
  return batching.language_batches(
    rows,
    batching.BatchSpec(
      batch_size=size,
      seed=config.seed,
      **transfer.process_shard(size, mesh),
    ),
    pad_id=tokenizer.pad_id,
  )


def _run(
  config: configs.PpoExperiment,
  directory: str,
  name: str,
  state: PpoState,
  below: tuple[PyTree, PyTree],
  frozen: dict[str, PyTree],
  marks: dict[str, int],
  programs: ppo_programs.Programs,
  prompts: grain.DatasetIterator,
  ptx: grain.DatasetIterator | None,
  mesh: Mesh,
  fingerprint: fingerprint_lib.Fingerprint,
  *,
  iterations: int,
  snapshot: Callable[[PpoState, int], None],
) -> tuple[PpoState, dict[str, Any]]:
  """The iterations, from where an earlier call stopped.

  Saves and ends after the next update once SIGTERM has come; the rest of its
  iteration then goes on with the experience that is saved too.
  """
  section, run = config.ppo, config.run
  updates = ppo_programs.updates_per_iteration(section)
  total = iterations * updates
  key = jax.random.key(config.seed)

  def networks_now(state: PpoState) -> tuple[PyTree, PyTree]:
    """All parameters of the policy and of the value network."""
    trained = (state.policy.params, state.value.params)
    return tuple(map(lora.merge_trees, below, trained))

  def like(step: int) -> dict[str, Any]:
    """What a checkpoint of so many updates holds."""
    if not step % updates:
      return vars(state)
    experience = _abstract_experience(
      programs, networks_now(state), state.kl_coef, frozen, prompts, key, mesh
    )
    return vars(state) | {"experience": experience}

  rates = [
    optimizer_lib.make_schedule(o, total)
    for o in ppo_programs.optimizer_configs(config)
  ]
  with checkpoints.Checkpointer(
    directory, supervised.retention_policy(run)
  ) as saver:
    restored = saver.restore_latest(
      like, lambda extra: fingerprint.require_same(extra, directory)
    )
    start, seconds, last = 0, 0.0, {}
    begun: Any = None  # experience and metrics of an iteration under way
    if restored is not None:
      start, saved, extra = restored
      if "experience" in saved:
        begun = (*saved.pop("experience"), extra["rolled"])
      state = PpoState(**saved)
      seconds, last = extra["seconds"], extra["last"]
      prompts.set_state(extra["prompts"])
      if ptx is not None:
        ptx.set_state(extra["ptx"])
      ppo_checks.unchanged(extra["marks"], marks, directory)
    with (
      MetricWriter(
        directory, tensorboard=run.tensorboard, resume_step=start
      ) as writer,
      Progress(
        iterations,
        name,
        initial=start // updates,
        unit="iteration",
        compiles=True,
      ) as progress,
      preemption.PreemptionWatch() as watch,
    ):
      guard, gaps = supervised.NonFiniteGuard(directory), None
      began = time.monotonic()
      for iteration in range(start // updates, iterations):
        since = time.monotonic()
        first = max(start, iteration * updates)
        position = {"prompts": prompts.get_state()}
        batch = _episodes(next(prompts), iteration, section.rollout_batch, mesh)
        if begun is None:
          policy, value = networks_now(state)
          rollout = programs.generate(
            policy, transfer.put_local_batch(batch, mesh), key
          )
          if first == start:
            gaps = ppo_checks.agree(
              programs.compare,
              policy,
              frozen,
              rollout,
              config,
              fresh=start == 0,
            )
          begun = programs.experience(
            rollout,
            frozen["reference"],
            frozen["reward"],
            value,
            state.kl_coef,
          )
          del policy, value, rollout
        experience, kl_coef, rolled = begun
        logged, stop = [], False
        rows_of = _minibatches(config.seed, iteration, section)
        for rows in rows_of[first % updates :]:
          inputs, extra_rows = {"prompts": batch, "episodes": rows}, None
          if ptx is not None:
            position = position | {"ptx": ptx.get_state()}
            inputs["ptx"] = next(ptx)
            extra_rows = transfer.put_local_batch(inputs["ptx"], mesh)
          state, metrics = programs.update(
            state, experience, rows, extra_rows, *below
          )
          logged.append(metrics)
          guard.watch(first + len(logged), position, inputs, metrics)
          stop = watch.requested()
          if stop:
            break
        guard.check()
        done = first + len(logged)
        rolled, logged = jax.device_get((rolled, logged))
        if first == 0 and gaps is not None:
          ppo_checks.first_update(logged[0], gaps, config)
        taken = time.monotonic() - since
        share = len(logged) / updates
        speed = {
          "episodes_per_second": share * section.rollout_batch / taken,
          "tokens_per_second": share * float(rolled["response_tokens"]) / taken,
        }
        shown = {k: v for k, v in rolled.items() if k != "response_tokens"}
        for step, metrics in enumerate(logged, first + 1):
          last = shown | metrics | speed
          writer.write(
            step,
            last
            | {
              "episodes": (iteration + 1) * section.rollout_batch,
              "learning_rate": rates[0](step - 1),
              "value_learning_rate": rates[1](step - 1),
            },
          )
        if done % updates:
          saved_state = vars(state) | {"experience": (experience, kl_coef)}
        else:
          position = {"prompts": prompts.get_state()}
          state = dataclasses.replace(state, kl_coef=kl_coef)
          saved_state, begun = vars(state), None
          progress.update(1, reward=rolled["reward"], kl=rolled["kl"])
          every = section.snapshot_every
          if every and not (iteration + 1) % every:
            snapshot(state, iteration + 1)
        if (
          stop
          or done == total
          or run.save_every
          and done // run.save_every > iteration * updates // run.save_every
        ):
          saver.save(
            done,
            saved_state,
            {
              "prompts": position["prompts"],
              "ptx": ptx.get_state() if ptx is not None else None,
              "rolled": files.to_json_values(rolled),
              fingerprint_lib.KEY: fingerprint.as_dict(),
              "marks": marks,
              "last": files.to_json_values(last),
              "seconds": seconds + time.monotonic() - began,
            },
            supervised.checkpoint_score(run, shown),
          )
        if stop:
          saver.wait()
          raise preemption.Preempted
      seconds += time.monotonic() - began
  after = {k: int(_fingerprint(v)) for k, v in frozen.items()}
  ppo_checks.unchanged(marks, after, directory)
  return state, {
    "updates": total,
    "episodes": iterations * section.rollout_batch,
    "seconds": seconds,
    **{k: last[k] for k in ("reward", "kl", "ended", "response_length")},
  }


def _abstract_experience(
  programs: ppo_programs.Programs,
  networks_now: tuple[PyTree, PyTree],
  kl_coef: Any,
  frozen: dict[str, PyTree],
  prompts: grain.DatasetIterator,
  key: Any,
  mesh: Mesh,
) -> Any:
  """Shapes and shardings of an iteration's experience and its next β."""
  position = prompts.get_state()
  batch = transfer.put_local_batch(next(prompts), mesh)
  prompts.set_state(position)
  policy, value = networks_now
  rollout = jax.eval_shape(programs.generate, policy, batch, key)
  experience, kl_coef, _ = jax.eval_shape(
    programs.experience,
    rollout,
    frozen["reference"],
    frozen["reward"],
    value,
    kl_coef,
  )

  def placed(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )

  return (
    placed(experience, sharding.batch_sharding(mesh)),
    placed(kl_coef, sharding.replicated(mesh)),
  )


def _episodes(batch: Any, iteration: int, size: int, mesh: Mesh) -> Any:
  """The batch with its rows numbered through the whole run.

  A row's random key follows from this number, so the same prompt is answered
  anew whenever it comes again.
  """
  local = len(batch.ids)
  part = transfer.process_shard(size, mesh)["shard_index"]
  first = iteration * size + part * local
  return dataclasses.replace(
    batch, ids=np.arange(first, first + local, dtype=np.int32)
  )


def _minibatches(
  seed: int, iteration: int, section: configs.Ppo
) -> list[np.ndarray]:
  """Which episodes each update of an iteration takes."""
  rows = []
  for epoch in range(section.inner_epochs):
    order = np.random.RandomState([seed & 0xFFFFFFFF, iteration, epoch])
    shuffled = order.permutation(section.rollout_batch).astype(np.int32)
    rows.extend(shuffled.reshape(-1, section.minibatch))
  return rows
