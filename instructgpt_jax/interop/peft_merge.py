"""Merges LoRA adapters in PEFT's format into the model that they adapt.

A merged tensor is its base's plus the scaled product of two small factors,
which is computed for the rows that are read.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from instructgpt_jax.errors import UserError
from instructgpt_jax.interop import directory, mapping, tensors
from instructgpt_jax.interop.peft import CONFIG, PREFIX, TENSORS

_PICKLE = "adapter_model.bin"
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_SCORE = "score.weight"
_MERGE = "merge it with PEFT (merge_and_unload), and give what that saves"
# Entries of adapter_config.json, with the values that are supported. Of other
# entries, those in _IGNORED change no output, and all others must be empty.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
  "peft_type": ("LORA",),
  "task_type": ("CAUSAL_LM", "SEQ_CLS", None),
  "bias": ("none", None),
  # The others change the base's weights when PEFT loads it.
  "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None),
}
_IGNORED = frozenset(
  {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path",
    "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout",
    "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "use_rslora", directory.SHIFT,
  }
)  # fmt: skip


class MergedTensor(NamedTuple):
  """A matrix of the base with an adapter.

  Attributes:
    base: the base's tensor.
    down: the first factor, [rank, inputs].
    up: the second factor, [outputs, rank].
    scale: factor of their product.
    transposed: whether the matrix is [inputs, outputs].
  """

  base: tensors.ReadableTensor
  down: tensors.ReadableTensor
  up: tensors.ReadableTensor
  scale: float
  transposed: bool

  @property
  def file(self) -> str:
    """Returns the base's file."""
    return self.base.file

  @property
  def dtype(self) -> str:
    """Returns the dtype of the base's values."""
    return self.base.dtype

  @property
  def shape(self) -> tuple[int, ...]:
    """Returns the shape of the matrix."""
    return self.base.shape

  def read_region(
    self, shape: Sequence[int], region: Sequence[slice], into: np.ndarray
  ) -> None:
    """Reads a region of the matrix; see `tensors.ReadableTensor`."""
    self.base.read_region(shape, region, into)
    left, right = _read(self.up), _read(self.down)
    if self.transposed:
      left, right = right.T, left.T
    axes = next(
      i for i in range(len(shape)) if math.prod(shape[:i]) == self.shape[0]
    )
    left = left.reshape(*shape[:axes], -1)[tuple(region[:axes])]
    right = right.reshape(-1, *shape[axes:])
    right = right[(slice(None), *region[axes:])] * np.float32(self.scale)
    size = 4 * math.prod(shape[1:])
    for start, stop in tensors.split_rows(slice(0, len(left)), size):
      into[start:stop] += np.tensordot(left[start:stop], right, 1)


def _read(tensor: tensors.ReadableTensor) -> np.ndarray:
  values = np.empty(tensor.shape, np.float32)
  tensor.read_region(tensor.shape, [slice(0, n) for n in tensor.shape], values)
  return values


def merge(
  source: directory.HubCheckpoint, path: str | os.PathLike[str]
) -> directory.HubCheckpoint:
  """Returns a model with the adapters of a PEFT directory.

  Args:
    source: the base model. Adapters with a score make a reward model of it.
    path: directory with adapter_config.json and adapter_model.safetensors.

  Raises:
    UserError: the directory is damaged, has settings that are not supported, or
      adapts another model.
  """
  folder = pathlib.Path(path)
  settings = _read_settings(folder)
  factors, replaced = _read_tensors(folder)
  source = _with_score(source, settings, replaced, folder)
  merged: dict[str, tensors.ReadableTensor] = dict(source.tensors)
  for name, tensor in replaced.items():
    if name not in merged:
      raise _unknown_module(name, tensor.file)
    _check_shape(name, tensor, merged[name].shape)
    merged[name] = tensor
  for module, pair in factors.items():
    name = f"{module}.weight"
    if name not in merged or len(merged[name].shape) != 2:
      raise _unknown_module(module, str(folder / TENSORS))
    merged[name] = _adapt(
      merged[name], module, pair, settings, source.family.transposed_kernels
    )
  return dataclasses.replace(source, tensors=merged)


def _unknown_module(name: str, file: str) -> UserError:
  return UserError(
    f"adapts {name}, which the base model does not have as a matrix of its own",
    file=file,
    fix="give the model that was adapted as --from",
    code="unknown_module",
  )


def _read_settings(folder: pathlib.Path) -> dict[str, Any]:
  """Reads adapter_config.json, and refuses settings that are not supported."""
  file = folder / CONFIG
  if not file.is_file():
    raise UserError(
      f"contains no {CONFIG}",
      file=str(folder),
      field="--adapter",
      fix="give a directory that save_pretrained of PEFT wrote",
      code="no_adapter_config",
    )
  settings = directory.read_json(file)
  for key in ("peft_type", "r", "lora_alpha"):
    if settings.get(key) is None:
      raise UserError(
        "is missing",
        file=str(file),
        field=key,
        fix=f"use the complete {CONFIG}",
        code="missing_config_value",
      )
  for key, value in settings.items():
    known = key in _IGNORED
    if key in _SUPPORTED:
      known = value in _SUPPORTED[key]
    if not known and (value or key in _SUPPORTED):
      raise UserError(
        f"is {value!r}, which is not supported",
        file=str(file),
        field=key,
        fix=_MERGE,
        code="unsupported_adapter",
      )
  for key in ("alpha_pattern", "rank_pattern"):
    if not isinstance(settings.get(key) or {}, dict):
      raise _bad_setting(file, key, settings[key])
  for key in ("r", "lora_alpha"):
    if isinstance(settings[key], bool) or not isinstance(
      settings[key], int | float
    ):
      raise _bad_setting(file, key, settings[key])
  return settings


def _bad_setting(file: pathlib.Path, key: str, value: Any) -> UserError:
  return UserError(
    f"is {value!r}",
    file=str(file),
    field=key,
    fix=f"use the {CONFIG} that PEFT wrote",
    code="bad_config_value",
  )


_Factors = dict[str, tensors.Tensor]  # "A" and "B"


def _read_tensors(
  folder: pathlib.Path,
) -> tuple[dict[str, _Factors], dict[str, tensors.ReadableTensor]]:
  """Reads the header of adapter_model.safetensors.

  Returns:
    Module → both factors, and name → tensor that replaces the base's.
  """
  file = folder / TENSORS
  if not file.is_file():
    pickle = (folder / _PICKLE).is_file()
    raise UserError(
      f"{_PICKLE} is a pickle, which may run code and is never read"
      if pickle
      else f"contains no {TENSORS}",
      file=str(folder),
      field="--adapter",
      fix="save the adapters as safetensors (save_pretrained of PEFT)",
      code="pickle" if pickle else "no_tensors",
    )
  factors: dict[str, _Factors] = {}
  replaced: dict[str, tensors.ReadableTensor] = {}
  for full_name, tensor in tensors.read_header(file).items():
    name = full_name.removeprefix(PREFIX)
    factor = _FACTOR.fullmatch(name)
    if (
      name == full_name
      or not tensors.is_float(tensor)
      or ("lora_" in name and factor is None)
    ):
      raise UserError(
        f"unexpected tensor {full_name} ({tensor.dtype})",
        file=str(file),
        fix=_MERGE,
        code="unsupported_adapter",
      )
    if factor is None:
      replaced[name] = tensor
    else:
      factors.setdefault(factor[1], {})[factor[2]] = tensor
  for module, pair in factors.items():
    if set(pair) != {"A", "B"}:
      raise UserError(
        f"has only lora_{''.join(pair)} of {module}",
        file=str(file),
        fix="copy it again from its source",
        code="missing_tensor",
      )
  if not factors and not replaced:
    raise UserError(
      "contains no tensors",
      file=str(file),
      fix="copy it again from its source",
      code="missing_tensor",
    )
  return factors, replaced


def _with_score(
  source: directory.HubCheckpoint,
  settings: Mapping[str, Any],
  replaced: Mapping[str, tensors.ReadableTensor],
  folder: pathlib.Path,
) -> directory.HubCheckpoint:
  """Returns the base as a reward model if the adapters are of one."""
  if settings.get("task_type") != "SEQ_CLS" and _SCORE not in replaced:
    if not source.scalar:
      return source
    raise UserError(
      "is a reward model, but the adapters are of a language model",
      file=source.path,
      fix="give the model that was adapted as --from",
      code="other_kind",
    )
  if _SCORE not in replaced and not source.scalar:
    raise UserError(
      f"has task_type SEQ_CLS, but {TENSORS} has no {PREFIX}{_SCORE}",
      file=str(folder / CONFIG),
      field="task_type",
      fix="copy the directory again from its source",
      code="missing_tensor",
    )
  shift = settings.get(directory.SHIFT, source.shift)
  if source.scalar:
    return dataclasses.replace(source, shift=float(shift))
  c = source.config
  axis_sizes = mapping.axis_sizes(c, c.vocab_size)
  expected = {
    name: weight.hf_shape(axis_sizes)
    for weight, _, name in directory.expand_layers(source.family, c, True)
  }
  _check_shape(_SCORE, replaced[_SCORE], expected[_SCORE])
  available = {**source.tensors, _SCORE: replaced[_SCORE]}
  return dataclasses.replace(
    source,
    scalar=True,
    shift=float(shift),
    tensors={name: available[name] for name in expected},
  )


def _check_shape(
  name: str, tensor: tensors.ReadableTensor, shape: tuple[int, ...]
) -> None:
  if tensor.shape != shape:
    raise UserError(
      f"{name} has the shape {list(tensor.shape)}, not {list(shape)}",
      file=tensor.file,
      fix="give the model that was adapted as --from",
      code="tensor_shape",
    )


def _adapt(
  base: tensors.ReadableTensor,
  module: str,
  pair: _Factors,
  settings: Mapping[str, Any],
  transposed: bool,
) -> MergedTensor:
  """Returns a matrix with its adapter, after a check of shapes."""
  rank = _by_pattern(settings.get("rank_pattern"), module, settings["r"])
  alpha = _by_pattern(
    settings.get("alpha_pattern"), module, settings["lora_alpha"]
  )
  outputs, inputs = base.shape[::-1] if transposed else base.shape
  _check_shape(f"lora_A of {module}", pair["A"], (rank, inputs))
  _check_shape(f"lora_B of {module}", pair["B"], (outputs, rank))
  divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
  return MergedTensor(base, pair["A"], pair["B"], alpha / divisor, transposed)


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
  """Returns the value of the first pattern that a module's name ends with."""
  for pattern, value in (patterns or {}).items():
    if re.match(rf"(.*\.)?({pattern})$", module):
      return value
  return default
