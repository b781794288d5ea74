"""Adapters as PEFT keeps them: adapter_config.json and their tensors alone."""

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
_AHEAD = "base_model.model."


def save(
  path: str | os.PathLike[str],
  leaves: Mapping[str, Any],
  config: Model,
  files: Mapping[str, bytes],
  *,
  base: str,
  dtype: str = "float32",
) -> families.Family:
  """Writes a directory that PEFT puts on a model of `transformers`.

  A reward model's head is in it. PEFT has no place for the head's bias, which
  adapter_config.json tells instead.

  Args:
    path: the directory, which must not be there.
    leaves: path → array, at least of the adapters and of a scalar model's head.
    config: the network.
    files: of the tokenizer, name → bytes.
    base: what PEFT is told to load below the adapters.
    dtype: of the tensors.

  Returns:
    The family whose names the tensors have.
  """
  family = families.holding(config)
  scalar = "head/kernel" in leaves
  extent = {**mapping.sizes(config, config.vocab_size), "r": config.lora_rank}

  def make(weight: mapping.Weight, layer: int) -> np.ndarray:
    array = directory.leaf_of(leaves, weight.leaf, layer)
    return mapping.take(weight, array, extent)

  adapted = {path.split("/")[-2] for path in leaves if path.endswith(lora.UP)}
  news, targets = [], set()
  for weight, layer, name in directory.expanded(family, config, scalar):
    module = name.removesuffix(".weight")
    _, ours, leaf = f"/{weight.leaf}".rsplit("/", 2)
    if leaf != "kernel":
      continue
    if ours == "head":
      parts = {"weight": weight}
    elif ours in adapted:
      parts = dict(_factors(weight, family.conv))
      targets.add(module.split(f".{layer}.", 1)[1])
    else:
      continue
    news += [
      tensors.New(
        f"{_AHEAD}{module}.{part}",
        factor.shape(extent),
        functools.partial(make, factor, layer),
      )
      for part, factor in parts.items()
    ]
  described = {
    "peft_type": "LORA",
    "task_type": "SEQ_CLS" if scalar else "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": config.lora_rank,
    "lora_alpha": config.lora_alpha,
    "lora_dropout": 0.0,
    "target_modules": sorted(targets),
    "modules_to_save": ["score"] if scalar else None,
    "fan_in_fan_out": family.conv,
    "bias": "none",
    "inference_mode": True,
  }
  if scalar:
    described[directory.SHIFT] = float(np.asarray(leaves["head/bias"])[0])
  with directory.written(path) as scratch:
    for name, content in files.items():
      (scratch / name).write_bytes(content)
    (scratch / CONFIG).write_text(json.dumps(described, indent=2) + "\n")
    tensors.write_file(scratch / TENSORS, news, tensors.NAMES[dtype])
  return family


def _factors(
  weight: mapping.Weight, conv: bool
) -> Iterator[tuple[str, mapping.Weight]]:
  """Both factors of a kernel's adapter, [R, inputs] and [outputs, R].

  Projections that lie in one array here have the same first factor.
  """
  inputs, outputs = weight.pattern.split()
  layer = weight.leaf.removesuffix("kernel")
  if not conv:
    inputs, outputs = outputs, inputs
  yield (
    "lora_A.weight",
    mapping.Weight("", layer + lora.DOWN, f"{inputs}r", f"r {inputs}"),
  )
  yield (
    "lora_B.weight",
    weight._replace(
      theirs="",
      leaf=layer + lora.UP,
      ours="r" + weight.ours.removeprefix(inputs),
      pattern=f"{outputs} r",
    ),
  )
