"""Pretraining: trains a base model on documents."""

from __future__ import annotations

from instructgpt_jax import configs
from instructgpt_jax.configs import checks
from instructgpt_jax.data import batching
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.distributed import transfer
from instructgpt_jax.models.heads import LanguageModel
from instructgpt_jax.training import documents as documents_lib
from instructgpt_jax.training import (
  fingerprint,
  inheritance,
  language,
  mixed_sources,
  stage_model,
  task_validation,
)


def train(
  config: configs.PretrainExperiment,
  directory: str,
  *,
  measure_tasks: task_validation.MeasureTasks | None = None,
) -> None:
  """Trains a base model on documents.

  Args:
    config: the experiment.
    directory: its workdir.
    measure_tasks: measures the tasks of `pretrain.tasks`, see
      `task_validation`.
  """
  if stage_model.is_complete(directory):
    return
  section = config.pretrain
  checks.check_divides(
    section.microbatch, section.batch_size, "pretrain.microbatch"
  )
  length = checks.row_length(
    section.sequence, config.model.max_seq_len, "pretrain.sequence"
  )
  documents = documents_lib.open_documents(config.data)
  tokenizer = inheritance.stage_tokenizer(directory, config, documents.texts)
  model = LanguageModel(
    inheritance.model_config(config, tokenizer, section.dropout)
  )
  rows, mix = documents.pack(tokenizer, length)
  valid = documents.valid_rows(tokenizer, length)
  mesh = mesh_lib.make_mesh(config.mesh)
  spec = batching.BatchSpec(
    batch_size=section.batch_size,
    seed=config.seed,
    mix=mix,
    **transfer.get_process_shard(section.batch_size, mesh),
  )
  batches = batching.language_batches(rows, spec, pad_id=tokenizer.pad_id)
  total_rows = section.steps * section.batch_size
  mixed_sources.report_use(
    directory,
    spec,
    mixed_sources.use_of_rows(documents.source, rows, mix, total_rows),
  )
  plan = language.Plan(
    name="pretrain",
    batches=batches,
    valid_rows=valid,
    total_steps=section.steps,
    microbatch=section.microbatch or 0,
    eval_every=section.eval_every,
    fingerprint=fingerprint.Fingerprint(
      {"rows": section.batch_size, "steps": section.steps},
      {
        "data.pretraining": documents.fingerprint(
          [rows, *valid.values()], "train", "valid"
        )
      },
    ),
    make_tasks=lambda all_params: task_validation.make_loop(
      section, measure_tasks, model, all_params, tokenizer, mesh
    ),
  )
  language.train(config, directory, model, tokenizer, plan, mesh)
