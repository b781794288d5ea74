"""What a stage leaves in its workdir, and how the next one starts from it."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from instructgpt_jax import configs
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.data import tokenizers as tokenizer_lib
from instructgpt_jax.data.tokenizers import Tokenizer, exported_tokens
from instructgpt_jax.distributed import processes
from instructgpt_jax.distributed.mesh import unbox
from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import directory as hub
from instructgpt_jax.interop import settings
from instructgpt_jax.models import lora
from instructgpt_jax.models.transformer import (
  LanguageModel,
  ScalarModel,
  abstract_params,
)
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.steps import state as state_lib
from instructgpt_jax.training import pretrained_rates, stage_errors
from instructgpt_jax.types import PyTree

TOKENIZER = "tokenizer"
LANGUAGE, SCALAR = "language", "scalar"
_add_to_mark = jax.jit(state_lib.add_to_checksum)
_WHAT = {LANGUAGE: "language model", SCALAR: "reward model"}

# These may differ from run to run, and adapters too; on the rest a checkpoint's
# arrays depend, or what they mean.
_FREE = ("dropout", "init_std", "position_init", "dtype", "remat")
_SHAPE = tuple(
  field.name
  for field in dataclasses.fields(configs.Model)
  if field.name not in _FREE and not field.name.startswith("lora_")
)

# What the text of a prompt depends on, without and with a chat template.
_TAGS = ("user_tag", "assistant_tag", "turn_separator")
_TEMPLATE = tuple(
  field.name
  for field in dataclasses.fields(configs.Data)
  if field.name in ("chat_template", "template_date")
)
_PROMPTS = (*_TAGS, *_TEMPLATE)
_LIMITS = ("max_prompt_tokens", "max_response_tokens")
INHERITED = (*_PROMPTS, *_LIMITS)  # fields of `data`

C = TypeVar("C", bound=configs.Experiment)


@dataclasses.dataclass(frozen=True)
class Stage:
  """A finished stage, or another library's model."""

  path: str
  kind: str  # LANGUAGE or SCALAR
  model_config: configs.Model
  data: configs.Data
  tokenizer: Tokenizer
  source: hub.Source | None = None  # of another library's model
  origin: settings.Origin | None = None  # what its training began from
  base: Stage | None = None  # that its adapters stand on
  mark: int = 0  # of the base
  blocks_only: bool = False  # whether the mark is of the base's blocks alone
  has_prompts: bool = True  # whether it was trained on prompts

  def params(self, abstract: PyTree, below: PyTree = None) -> PyTree:
    """Its parameters, with the shapes and shardings of a tree.

    Args:
      abstract: the tree.
      below: the base's parameters, where they are loaded already.

    Raises:
      UserError: they are damaged, or the base is not what was adapted.
    """
    if self.source is not None:
      return hub.load(self.source, abstract)
    if self.base is None:
      return checkpoints.load_model(self.path, abstract)
    if below is None:
      below = self.base.params(unbox(abstract_params(self.base.network)))
    self.check(hub.flattened(below))
    below = lora.merge_lora(self.base.model_config, below)
    frozen, trained = lora.split(self.model_config, abstract)
    found = checkpoints.load_model(self.path, trained)
    return lora.merge_trees(lora.tree_select(frozen, below), found)

  def check(self, below: Mapping[str, Any]) -> None:
    """Refuses leaves of a base that are not those that were adapted."""
    assert self.base is not None
    size = self.base.model_config.vocab_size
    if params_checksum(below, size, blocks_only=self.blocks_only) != self.mark:
      raise UserError(
        "is not the model that was adapted",
        file=self.base.path,
        fix=f"put back what it was when {self.path} was trained",
      )

  def reader(self) -> Callable[[PyTree], PyTree]:
    """Loads some of its leaves at a time: those of a tree.

    Adapters are by themselves, and what they stand on is the base's to read.
    """
    if self.source is not None:
      return functools.partial(hub.load, self.source)
    return checkpoints.model_reader(self.path)

  @property
  def network(self) -> Any:
    """The flax module, without dropout."""
    network = LanguageModel if self.kind == LANGUAGE else ScalarModel
    return network(dataclasses.replace(self.model_config, dropout=0.0))


class LoraBase(NamedTuple):
  """What adapters stand on."""

  path: str
  mark: int
  blocks_only: bool = False


def params_checksum(
  leaves: Mapping[str, Any], vocab_size: int, *, blocks_only: bool = False
) -> int:
  """Computes a hash of a model.

  Args:
    leaves: path → array, one of which is held at a time.
    vocab_size: rows of the vocabulary that count. Others pad it for a mesh.
    blocks_only: whether only the blocks count, as in stages of an earlier
      version.
  """
  result = np.uint32(0)
  for path in sorted(leaves):
    if blocks_only and not path.startswith("transformer/blocks"):
      continue
    leaf = leaves[path]
    if path == "transformer/embedding/embedding":
      leaf = leaf[:vocab_size]
    elif path.startswith("unembedding/"):
      leaf = leaf[..., :vocab_size]
    result = _add_to_mark(result, leaf)
  return int(result)


def open_stage(
  path: str,
  *,
  kind: str = "",
  field: str = "",
  run: configs.Experiment | None = None,
) -> Stage:
  """Reads the model of a finished stage, but not its parameters.

  Args:
    path: its workdir, or a Hugging Face directory.
    kind: what it must hold, LANGUAGE or SCALAR; "" takes either.
    field: the flag that named it, for errors.
    run: for which a Hugging Face directory is read: in its precision and
      context, and with a vocabulary and heads that its mesh divides.

  Raises:
    UserError: there is no such directory, it is not finished, or holds another
      kind of model.
  """
  field_or_none = field or None
  folder = pathlib.Path(path)
  if not folder.is_dir():
    raise stage_errors.no_directory(path, field_or_none)
  if hub.is_folder(folder):
    stage = _from_hub(path, field_or_none, run)
    _require(stage.kind, kind, path, field_or_none)
    return stage
  if not checkpoints.has_model(folder):
    raise stage_errors.no_model(folder, field_or_none)
  if files.read_complete(folder) is None:
    raise UserError(
      "has not run to its end", file=path, field=field_or_none,
      fix="run its command again: it resumes where it stopped",
    )  # fmt: skip
  info = checkpoints.load_model_info(folder)
  try:
    stage_kind = str(info["kind"])
    model_config = configs.Model(**info["model"])
    data = configs.Data(**info["data"])
    origin = settings.Origin(**info["origin"]) if info.get("origin") else None
  except (KeyError, TypeError) as error:
    raise UserError(
      f"its model was saved by another version ({error})", file=path,
      field=field_or_none, fix="run the stage again in a new --workdir",
    ) from error  # fmt: skip
  if info.get("stage") == "import" and run is not None:
    # As from the directory that was imported: it has no limits of its own.
    data = run.data
    if model_config.pos_emb == "rope":  # no array depends on the context
      context = min(model_config.max_seq_len, run.model.max_seq_len)
      model_config = dataclasses.replace(model_config, max_seq_len=context)
  _require(stage_kind, kind, path, field_or_none)
  stage = Stage(
    path,
    stage_kind,
    model_config,
    data,
    read_tokenizer(folder / TOKENIZER, data),
    origin=origin,
    has_prompts=info.get("stage") not in ("pretrain", "import"),
  )
  if not model_config.lora_rank:
    return stage
  return _attach_base(stage, info["adapts"], run)


def _attach_base(
  stage: Stage, adapts: Mapping[str, Any], run: configs.Experiment | None
) -> Stage:
  """A stage with what its adapters stand on."""
  where = os.path.normpath(os.path.join(stage.path, adapts["path"]))
  try:
    base = open_stage(where, run=run)
  except UserError as error:
    raise UserError(
      f"the model that was adapted: {error.problem}",
      file=where,
      fix=f"put back the model from which {stage.path} started",
    ) from error
  rows = base.model_config.vocab_padding
  held = dataclasses.replace(stage.model_config, vocab_padding=rows)
  if base.source is not None:  # its arrays can be stacked either way
    shape = dataclasses.replace(held, lora_rank=0)
    base = dataclasses.replace(base, model_config=shape)
  return dataclasses.replace(
    stage,
    model_config=held,
    base=base,
    mark=int(adapts["hash"] if "hash" in adapts else adapts["mark"]),
    blocks_only="hash" not in adapts,
  )


def _require(stage_kind: str, kind: str, path: str, field: str | None) -> None:
  if kind and stage_kind != kind:
    raise UserError(
      f"holds a {_WHAT[stage_kind]}, where a {_WHAT[kind]} is needed",
      file=path,
      field=field,
      fix="give the workdir of a reward stage"
      if kind == SCALAR
      else "give the workdir of pretrain, sft, policy_init or ppo",
    )


def _from_hub(
  path: str, field: str | None, run: configs.Experiment | None
) -> Stage:
  """Opens a Hugging Face directory as a stage; pads vocabulary and heads.

  Rows are added for a padding token that its tokenizer does not have, and until
  the mesh divides them. They are never predicted. Heads are added until the
  mesh divides them. Their weights are zero, and stay so: their gradients are
  zero as well.
  """
  source = hub.look(path)
  tokenizer = read_tokenizer(path, configs.Data() if run is None else run.data)
  hub_config = source.config
  if max(tokenizer.base_size, tokenizer.eos_id + 1) > hub_config.vocab_size:
    what = "ids" if tokenizer.eos_id < tokenizer.base_size else "no end-of-text"
    raise UserError(
      f"its tokenizer has {what} ({tokenizer.vocab_size}), its model"
      f" {hub_config.vocab_size} rows",
      file=path,
      field=field,
      fix="give a directory with the model's own tokenizer"
      if tokenizer.eos_id < tokenizer.base_size
      else "name eos_token in its tokenizer_config.json",
      code="no_end_of_text"
      if tokenizer.eos_id >= tokenizer.base_size
      else "tokenizer_beyond_model",
    )
  requested, unit, data = configs.Model(), 1, configs.Data()
  context = hub_config.max_seq_len
  if run is not None:
    requested, unit, data = run.model, run.mesh.tensor, run.data
    if hub_config.pos_emb == "rope":  # no array depends on it
      context = min(context, requested.max_seq_len)
  rows = -(-max(tokenizer.vocab_size, hub_config.vocab_size) // unit) * unit
  model = dataclasses.replace(
    hub_config,
    max_seq_len=context,
    vocab_padding=rows - hub_config.vocab_size,
    head_padding=-hub_config.kv_heads % unit,
    scan_layers=requested.scan_layers,
    **{name: getattr(requested, name) for name in _FREE},
  )
  kind = SCALAR if source.scalar else LANGUAGE
  return Stage(path, kind, model, data, tokenizer, source, source.origin)


def load_policy(path: str) -> tuple[LanguageModel, Any, Tokenizer, Any]:
  """(model, parameters, tokenizer, stage) of a stage that writes text."""
  stage = open_stage(path, kind=LANGUAGE, field="--checkpoint")
  network = stage.network
  params = stage.params(unbox(abstract_params(network)))
  return network, params, stage.tokenizer, stage


def inherit_architecture(config: C) -> C:
  """Completes a config with the network, prompts and limits of `init_from`.

  The network's shape is the checkpoint's, whatever the preset says. So are the
  prompt format and the limits, unless the user has set them. Each field that
  changes is shown. Called before the config is written.

  Raises:
    UserError: `other_prompts`, the user has set another prompt format than the
      one that the stage was trained with.
  """
  if not config.init_from:
    return config
  stage = open_stage(config.init_from, field="init_from", run=config)
  if stage.origin is not None:
    pretrained_rates.check_rates(config, stage.model_config)
  shape = {name: getattr(stage.model_config, name) for name in _SHAPE}
  changed = {
    f"model.{name}": value
    for name, value in shape.items()
    if name != "vocab_size" and getattr(config.model, name) != value
  }
  data = inherited_data(config.data, stage)
  changed |= {
    f"data.{name}": getattr(data, name)
    for name in INHERITED
    if getattr(data, name) != getattr(config.data, name)
  }
  if changed:
    shown = ", ".join(f"{name}={value}" for name, value in changed.items())
    log_line(f"from {config.init_from}: {shown}")
  model = dataclasses.replace(config.model, **shape)
  return dataclasses.replace(config, model=model, data=data)


def inherited_data(data: configs.Data, stage: Stage) -> configs.Data:
  """Takes the prompt format and the limits of a stage, unless they are set.

  Args:
    data: the data section of a run that starts from the stage.
    stage: of this library, or another library's model, which has neither.

  Raises:
    UserError: another prompt format is set than the stage was trained with.
  """
  if stage.source is not None:
    return data  # Another library's model says nothing of them.
  names = _PROMPTS
  # Pretraining does not use its limits, which may be anything.
  if stage.has_prompts or _total(stage.data) <= stage.model_config.max_seq_len:
    names += _LIMITS
  following = {
    name: getattr(stage.data, name)
    for name in names
    if not data.is_explicit(name)
  }
  data = dataclasses.replace(data, **following)
  check_same_prompts(stage, data, "init_from")
  others = [
    f"data.{name}={getattr(data, name)} (the stage has"
    f" {getattr(stage.data, name)})"
    for name in _LIMITS
    if stage.has_prompts and getattr(data, name) != getattr(stage.data, name)
  ]
  if others:
    log_line(f"unlike {stage.path}: {', '.join(others)}")
  return data


def _total(data: configs.Data) -> int:
  return data.max_prompt_tokens + data.max_response_tokens


def require_compatible(
  stage: Stage, tokenizer: Tokenizer, data: configs.Data, field: str
) -> None:
  """Refuses a second model that cannot read what the first one reads.

  Args:
    stage: the second model.
    tokenizer: of the first one.
    data: the run's settings.
    field: the flag that names the second one.

  Raises:
    UserError: it has another tokenizer, another prompt format, or too short a
      context.
  """
  check_same_tokenizer(stage.tokenizer, tokenizer, stage.path, field)
  check_same_prompts(stage, data, field)
  context = stage.model_config.max_seq_len
  if _total(data) > context:
    raise UserError(
      f"has {context} positions, and prompts of {data.max_prompt_tokens} with"
      f" responses of {data.max_response_tokens} tokens do not fit them",
      file=stage.path,
      field=field,
      fix="lower --data.max_prompt_tokens or --data.max_response_tokens",
      code="short_context",
    )


def check_same_prompts(stage: Stage, data: configs.Data, field: str) -> None:
  """Refuses a stage whose prompts are written in another format.

  Args:
    stage: a model that reads prompts; one that was trained on documents alone,
      or by another library, has no format.
    data: the run's settings.
    field: the flag that names the stage.

  Raises:
    UserError: `other_prompts`.
  """
  if stage.source is not None or not stage.has_prompts:
    return
  theirs, ours = (prompt_format(d, stage.tokenizer) for d in (stage.data, data))
  for name in (*_TEMPLATE, *_TAGS):  # Without a template the tags count.
    if theirs.get(name) == ours.get(name):
      continue
    old, new = (getattr(d, name) for d in (stage.data, data))
    raise UserError(
      f"was trained with data.{name}={old!r}, and this run has {new!r}",
      file=stage.path,
      field=field,
      fix=f"leave out --data.{name}, which then follows --init_from"
      if data.is_explicit(name)
      else "give a stage that was trained with the prompts of this run",
      code="other_prompts",
    )


def prompt_format(data: configs.Data, tokenizer: Tokenizer) -> dict[str, Any]:
  """Returns the settings that decide the text of a prompt.

  Args:
    data: the settings.
    tokenizer: with a chat template of its own the tags are not used, without
      one nothing about templates is.
  """
  if tokenizer.template is None:
    return {name: getattr(data, name) for name in _TAGS}
  names = _TEMPLATE if data.chat_template else ("chat_template", *_TAGS)
  return {name: getattr(data, name) for name in names}


def read_tokenizer(path: str | pathlib.Path, data: configs.Data) -> Tokenizer:
  """Loads a tokenizer for a run with or without chat template."""
  tokenizer = tokenizer_lib.load_tokenizer(path)
  return tokenizer if data.chat_template else tokenizer.without_template()


def check_same_tokenizer(
  a: Tokenizer, b: Tokenizer, file: str, field: str
) -> None:
  """Refuses two models whose token ids mean different things."""
  if not exported_tokens.same_ids(a, b):
    raise UserError(
      "was trained with another tokenizer",
      file=file,
      field=field,
      fix="give stages of one family, with the same tokenizer",
    )


def stage_tokenizer(
  workdir: str | pathlib.Path,
  config: configs.Experiment,
  texts: Callable[[], Iterable[str]],
) -> Tokenizer:
  """Returns the run's tokenizer; `put_tokenizer` saves it later.

  It is that of an earlier call, else of `init_from`, else of `tokenizer.path`,
  else one trained on `texts()`.
  """
  folder = pathlib.Path(workdir) / TOKENIZER
  if folder.exists():
    return read_tokenizer(folder, config.data)
  path = config.tokenizer.path
  chosen = read_tokenizer(path, config.data) if path else None
  if config.init_from:
    stage = open_stage(config.init_from, field="init_from", run=config)
    source = stage.tokenizer
    if chosen is not None:
      check_same_tokenizer(source, chosen, path, "tokenizer.path")
    chosen = source
  if chosen is None:
    log_line("training a tokenizer")
    chosen = tokenizer_lib.train_tokenizer(texts(), config.tokenizer)
  for note in chosen.notes:
    log_line(f"tokenizer of {config.init_from or path}: {note}")
  return chosen


def put_tokenizer(workdir: str | pathlib.Path, tokenizer: Tokenizer) -> None:
  """Saves a tokenizer in a workdir, whole or not at all."""
  folder = pathlib.Path(workdir) / TOKENIZER
  if folder.exists() or not processes.is_main_process():
    return
  files.make_directory(folder.parent)
  scratch = folder.with_name(TOKENIZER + ".next")
  with files.disk_errors_as_user_errors(folder):
    shutil.rmtree(scratch, ignore_errors=True)
    tokenizer.save(scratch)
    files.publish_directory(scratch, folder)


def model_config(
  config: configs.Experiment, tokenizer: Tokenizer, dropout: float = 0.0
) -> configs.Model:
  """The network's config with its vocabulary size and this stage's dropout."""
  size = config.model.vocab_size or tokenizer.vocab_size
  rows = size + config.model.vocab_padding
  if rows < tokenizer.vocab_size:
    raise UserError(
      f"the tokenizer has {tokenizer.vocab_size} ids, the model only {rows}",
      field="model.vocab_size",
      fix="give 0, which takes the tokenizer's size",
    )
  return dataclasses.replace(config.model, vocab_size=size, dropout=dropout)


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
  """Writes `model/`, from which `open_stage` reads.

  Args:
    workdir: of the stage.
    params: all of its parameters, or those that were trained.
    kind: LANGUAGE or SCALAR.
    model: the network.
    data: the limits that it was trained with.
    adapts: what its adapters stand on; its path is kept as seen from here.
    starts_from: the stage that training began from; an export keeps the
      settings of the Hugging Face directory at its beginning.
    **info: more to keep.
  """
  if adapts is not None:
    path = os.path.relpath(adapts.path, workdir)
    key = "mark" if adapts.blocks_only else "hash"
    info["adapts"] = {"path": path, key: adapts.mark}
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
  """What `open_stage` reads of a model beside its parameters."""
  return dict(
    kind=kind,
    model=dataclasses.asdict(model),
    data=dataclasses.asdict(data),
    origin=origin._asdict() if origin else None,
    **info,
  )


def is_complete(workdir: str | pathlib.Path) -> Mapping[str, Any] | None:
  """The summary of a run that is already done, told to the user, or None."""
  summary = files.read_complete(workdir)
  if summary is not None:
    log_line(f"{workdir}: already complete")
  return summary
