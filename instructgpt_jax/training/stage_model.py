"""The model of a finished stage: written to its workdir, and opened again."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from instructgpt_jax import configs, gguf_header
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.configs import checks, renamed
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import directory as hub
from instructgpt_jax.interop import gguf_checkpoint, peft_merge, settings
from instructgpt_jax.models import lora
from instructgpt_jax.models.heads import (
  LanguageModel,
  ScalarModel,
  abstract_params,
)
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.sharding import unbox
from instructgpt_jax.training import pretrained, stage_errors
from instructgpt_jax.training.lora_base import LoraBase, base_checksum
from instructgpt_jax.training.tokenizer_store import (
  TOKENIZER,
  adapter_tokenizer,
  read_tokenizer,
)
from instructgpt_jax.types import PyTree

LANGUAGE, SCALAR = "language", "scalar"
_DESCRIPTIONS = {LANGUAGE: "language model", SCALAR: "reward model"}


@dataclasses.dataclass(frozen=True)
class Stage:
  """The model of a finished stage, a Hugging Face directory or a GGUF file.

  Attributes:
    path: the directory or file.
    kind: LANGUAGE or SCALAR.
    model_config: the network.
    data: prompt format and limits that it was trained with.
    tokenizer: its tokenizer.
    source: the Hugging Face directory or GGUF file, where it is one.
    origin: settings of the Hugging Face model that training began from.
    base: the stage that its adapters belong to.
    checksum: checksum of the base.
    blocks_only: whether the checksum is of the base's blocks alone.
    has_prompts: whether it was trained on prompts.
  """

  path: str
  kind: str
  model_config: configs.Model
  data: configs.Data
  tokenizer: Tokenizer
  source: hub.HubCheckpoint | None = None
  origin: settings.Origin | None = None
  base: Stage | None = None
  checksum: int = 0
  blocks_only: bool = False
  has_prompts: bool = True

  def params(self, abstract: PyTree, base_params: PyTree = None) -> PyTree:
    """Loads the parameters.

    Args:
      abstract: tree of their shapes and shardings.
      base_params: the base's parameters, if they are loaded already.

    Raises:
      UserError: they are damaged, or the base is not the adapted model.
    """
    if self.source is not None:
      return hub.load(self.source, abstract)
    # Without adapters nothing is frozen, and all parameters are in the workdir.
    frozen, trained = lora.split(self.model_config, abstract)
    params = checkpoints.load_model(self.path, trained)
    if self.base is None:
      return params
    if base_params is None:
      base_params = self.base.params(unbox(abstract_params(self.base.network)))
    self.check(hub.flatten_leaves(base_params))
    base_params = lora.merge_lora(self.base.model_config, base_params)
    return lora.merge_trees(lora.tree_select(frozen, base_params), params)

  def check(self, base_leaves: Mapping[str, Any]) -> None:
    """Refuses leaves of a base that is not the adapted model."""
    assert self.base is not None
    checksum = base_checksum(
      base_leaves,
      self.base.model_config.vocab_size,
      blocks_only=self.blocks_only,
    )
    if checksum != self.checksum:
      raise UserError(
        "is not the model that was adapted",
        file=self.base.path,
        fix=f"put back the model from which {self.path} was trained",
        code="other_base",
      )

  def reader(self) -> Callable[[PyTree], PyTree]:
    """Returns a function that loads the leaves of a tree of shapes.

    Of a stage with adapters it loads the adapters; the base has its own reader.
    """
    if self.source is not None:
      return functools.partial(hub.load, self.source)
    return checkpoints.model_reader(self.path)

  @property
  def network(self) -> Any:
    """Returns the Flax module, without dropout."""
    network = LanguageModel if self.kind == LANGUAGE else ScalarModel
    return network(dataclasses.replace(self.model_config, dropout=0.0))


def open_stage(
  path: str,
  *,
  kind: str = "",
  field: str = "",
  run: configs.Experiment | None = None,
  adapter: str = "",
) -> Stage:
  """Opens the model of a finished stage, without its parameters.

  Args:
    path: its workdir, a Hugging Face directory, or a GGUF file.
    kind: LANGUAGE or SCALAR, the kind that is required; "" accepts both.
    field: the flag that named it, for errors.
    run: the run that reads a Hugging Face model: its precision and context are
      used, and its mesh divides vocabulary and heads.
    adapter: a PEFT directory that is merged into a Hugging Face model; "" for
      none.

  Raises:
    UserError: there is no such directory, it is not finished, or it holds
      another kind of model.
  """
  directory = pathlib.Path(path)
  is_gguf = gguf_header.is_gguf(path)
  if is_gguf or hub.is_hub_directory(directory):
    stage = _open_pretrained(path, field or None, run, adapter)
    _check_kind(stage.kind, kind, path, field or None)
    return stage
  _check_finished(directory, path, field or None)
  info = checkpoints.load_model_info(directory)
  try:
    stage_kind = str(info["kind"])
    model = renamed.read_section("model", configs.Model, info["model"])
    data = renamed.read_section("data", configs.Data, info["data"])
    origin = settings.Origin(**info["origin"]) if info.get("origin") else None
  except (KeyError, TypeError) as error:
    raise UserError(
      f"its model was saved by another version ({error})",
      file=path,
      field=field or None,
      fix="run the stage again in a new --workdir",
      code="other_version",
    ) from error
  if info.get("stage") == "import" and run is not None:
    # An imported model has no limits of its own.
    model, data = pretrained.with_context_of(run, model), run.data
  _check_kind(stage_kind, kind, path, field or None)
  tokenizer = read_tokenizer(directory / TOKENIZER, data)
  stage = Stage(path, stage_kind, model, data, tokenizer, origin=origin)
  if info.get("stage") in ("pretrain", "import"):
    stage = dataclasses.replace(stage, has_prompts=False)
  if model.lora_rank:
    return _attach_base(stage, info["adapts"], run)
  return stage


def _check_finished(
  directory: pathlib.Path, path: str, field: str | None
) -> None:
  """Refuses a path without the model of a finished stage."""
  if not checkpoints.has_model(directory):
    raise stage_errors.no_stage(path, field)
  if files.read_complete(directory) is None:
    raise UserError(
      "has not run to its end",
      file=path,
      field=field,
      fix="run its command again: it resumes where it stopped",
      code="unfinished",
    )


def _attach_base(
  stage: Stage, adapts: Mapping[str, Any], run: configs.Experiment | None
) -> Stage:
  """Returns a stage with the base model that its adapters belong to."""
  path = os.path.normpath(os.path.join(stage.path, adapts["path"]))
  try:
    base = open_stage(path, run=run)
  except UserError as error:
    raise UserError(
      f"the model that was adapted: {error.problem}",
      file=path,
      fix=f"put back the model from which {stage.path} started",
      code="no_base",
    ) from error
  model = dataclasses.replace(
    stage.model_config, vocab_padding=base.model_config.vocab_padding
  )
  if base.source is not None:  # its arrays can be stacked either way
    shape = dataclasses.replace(model, lora_rank=None)
    base = dataclasses.replace(base, model_config=shape)
  return dataclasses.replace(
    stage,
    model_config=model,
    base=base,
    checksum=int(adapts["hash"] if "hash" in adapts else adapts["mark"]),
    blocks_only="hash" not in adapts,
  )


def _check_kind(
  actual: str, required: str, path: str, field: str | None
) -> None:
  if required and actual != required:
    raise UserError(
      f"holds a {_DESCRIPTIONS[actual]}, where a {_DESCRIPTIONS[required]} is"
      " needed",
      file=path,
      field=field,
      fix="give the workdir of a reward stage"
      if required == SCALAR
      else "give the workdir of pretrain, sft, policy_init or ppo",
      code="other_kind",
    )


def _open_pretrained(
  path: str, field: str | None, run: configs.Experiment | None, adapter: str
) -> Stage:
  """Opens a Hugging Face directory or a GGUF file as a stage."""
  if gguf_header.is_gguf(path):
    source = gguf_checkpoint.inspect(path)
  else:
    source = hub.inspect(path)
  data = configs.Data() if run is None else run.data
  tokenizer = read_tokenizer(path, data)
  if adapter:
    source = peft_merge.merge(source, adapter)
    tokenizer = adapter_tokenizer(adapter, tokenizer, data)
  pretrained.check_tokenizer_fits(tokenizer, source.config, path, field)
  return Stage(
    path,
    SCALAR if source.scalar else LANGUAGE,
    pretrained.padded_model_config(source, tokenizer, run),
    data,
    tokenizer,
    source,
    source.origin,
  )


def open_reward_models(
  run: configs.PpoExperiment | configs.EvaluateExperiment,
) -> list[Stage]:
  """Opens the reward models that a run names, if any.

  Raises:
    UserError: one cannot be opened, or the settings of the ensemble do not fit.
  """
  if isinstance(run, configs.PpoExperiment):
    section, name = run.ppo, "ppo"
  else:
    section, name = run.measure, "measure"
  checks.check_reward_models(section, name)
  return [
    open_stage(path, kind=SCALAR, field=f"{name}.reward_model", run=run)
    for path in section.reward_models
  ]


def load_policy(path: str) -> tuple[LanguageModel, Any, Tokenizer, Stage]:
  """Loads a stage's language model to sample from.

  Args:
    path: workdir of the stage, a Hugging Face directory, or a GGUF file.

  Returns:
    Model, parameters, tokenizer and stage.
  """
  stage = open_stage(path, kind=LANGUAGE, field="--checkpoint")
  params = stage.params(unbox(abstract_params(stage.network)))
  return stage.network, params, stage.tokenizer, stage


def save_stage_model(
  workdir: str | pathlib.Path,
  params: Any,
  *,
  kind: str,
  model: configs.Model,
  data: configs.Data,
  adapts: LoraBase | None = None,
  starts_from: Stage | None = None,
  **info: Any,
) -> None:
  """Writes `model/`, which `open_stage` reads.

  Args:
    workdir: directory of the stage.
    params: all of its parameters, or the trained ones.
    kind: LANGUAGE or SCALAR.
    model: the network.
    data: prompt format and limits that it was trained with.
    adapts: base model of its adapters; saved with a path relative to the
      workdir.
    starts_from: the stage that training began from; an export keeps the
      settings of the Hugging Face directory at its beginning.
    **info: further values to save.
  """
  if adapts is not None:
    path = os.path.relpath(adapts.path, workdir)
    key = "mark" if adapts.blocks_only else "hash"
    info["adapts"] = {"path": path, key: adapts.checksum}
  _, trained = lora.split(model, params)
  origin = None if starts_from is None else starts_from.origin
  checkpoints.save_model(
    workdir, trained, model_info(kind, model, data, origin=origin, **info)
  )


def model_info(
  kind: str,
  model: configs.Model,
  data: configs.Data,
  *,
  origin: settings.Origin | None = None,
  **info: Any,
) -> dict[str, Any]:
  """Returns what `open_stage` reads of a model beside its parameters."""
  return dict(
    kind=kind,
    model=dataclasses.asdict(model),
    data=dataclasses.asdict(data),
    origin=origin._asdict() if origin else None,
    **info,
  )


def is_complete(workdir: str | pathlib.Path) -> bool:
  """Whether a run is done already; if so, logs a line that says so."""
  if files.read_complete(workdir) is None:
    return False
  log_line(f"{workdir}: already complete")
  return True
