"""Writes LoRA adapters in PEFT's format: adapter_config.json and tensors."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from instructgpt_jax.configs import Model
from instructgpt_jax.interop import directory, families, mapping, tensors
from instructgpt_jax.models import lora

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def save(
  path: str | os.PathLike[str],
  leaves: Mapping[str, Any],
  config: Model,
  files: Mapping[str, bytes],
  *,
  base: str,
  dtype: str = "float32",
) -> families.Family:
  """Writes a PEFT directory, which applies to a model of `transformers`.

  A reward model's head is included. PEFT has no tensor for the head's bias, so
  adapter_config.json records it.

  Args:
    path: directory to create; must not exist.
    leaves: path → array; at least the adapters and a scalar model's head.
    config: the model's config.
    files: tokenizer files, name → bytes.
    base: path or name of the base model that PEFT loads.
    dtype: dtype of the tensors.

  Returns:
    The family that determines the tensors' names.
  """
  family = families.family_for(config)
  scalar = "head/kernel" in leaves
  axis_sizes = mapping.axis_sizes(config, config.vocab_size)
  axis_sizes["r"] = config.lora_rank

  def compute(weight: mapping.Weight, layer: int) -> np.ndarray:
    array = directory.get_leaf(leaves, weight.native_path, layer)
    return mapping.extract_hf_tensor(weight, array, axis_sizes)

  adapted = {path.split("/")[-2] for path in leaves if path.endswith(lora.UP)}
  pending, targets = [], set()
  for weight, layer, name in directory.expand_layers(family, config, scalar):
    module = name.removesuffix(".weight")
    _, native_layer, leaf = f"/{weight.native_path}".rsplit("/", 2)
    if leaf != "kernel":
      continue
    if native_layer == "head":
      factors = {"weight": weight}
    elif native_layer in adapted:
      factors = dict(_list_factors(weight, family.transposed_kernels))
      targets.add(module.split(f".{layer}.", 1)[1])
    else:
      continue
    pending += [
      tensors.PendingTensor(
        f"{PREFIX}{module}.{factor_name}",
        factor.hf_shape(axis_sizes),
        functools.partial(compute, factor, layer),
      )
      for factor_name, factor in factors.items()
    ]
  adapter_config = {
    "peft_type": "LORA",
    "task_type": "SEQ_CLS" if scalar else "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": config.lora_rank,
    "lora_alpha": config.lora_alpha,
    "lora_dropout": 0.0,
    "target_modules": sorted(targets),
    "modules_to_save": ["score"] if scalar else None,
    "fan_in_fan_out": family.transposed_kernels,
    "bias": "none",
    "inference_mode": True,
  }
  if scalar:
    adapter_config[directory.SHIFT] = float(np.asarray(leaves["head/bias"])[0])
  with directory.write_atomically(path) as scratch:
    for name, content in files.items():
      (scratch / name).write_bytes(content)
    (scratch / CONFIG).write_text(json.dumps(adapter_config, indent=2) + "\n")
    tensors.write_file(scratch / TENSORS, pending, tensors.DTYPES[dtype])
  return family


def _list_factors(
  weight: mapping.Weight, transposed: bool
) -> Iterator[tuple[str, mapping.Weight]]:
  """Yields both factors of a kernel's adapter, [R, inputs] and [outputs, R].

  Projections that share a native array have the same first factor.
  """
  inputs, outputs = weight.hf_axes.split()
  layer = weight.native_path.removesuffix("kernel")
  if not transposed:
    inputs, outputs = outputs, inputs
  yield (
    "lora_A.weight",
    mapping.Weight("", layer + lora.DOWN, f"{inputs}r", f"r {inputs}"),
  )
  yield (
    "lora_B.weight",
    mapping.Weight(
      "",
      layer + lora.UP,
      "r" + weight.native_axes.removeprefix(inputs),
      f"{outputs} r",
      weight.projection,
    ),
  )
