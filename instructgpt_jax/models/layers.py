"""Dense layers, norms and activations of a block.

`axis` is the position of the feature axis: −1 for activations [M, D], and 0 for
the feature-major layout [D, B] of decoding (`kernels/feature_major.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from instructgpt_jax import sharding
from instructgpt_jax.models.kernels import feature_major
from instructgpt_jax.models.kernels.dense import Prologue, dense, identity
from instructgpt_jax.models.kernels.feature_major import TRANSPOSED
from instructgpt_jax.types import Array

EPSILON = 1e-5  # of LayerNorm
CHECKPOINT_NAME = "dense"  # of a layer's output, for checkpoint policies


def kernel_init(stddev: float, *axes: str | None) -> Any:
  """Returns an initializer N(0, stddev²) with named axes."""
  return nn.with_logical_partitioning(nn.initializers.normal(stddev), axes)


def vector_init(value: float, *axes: str | None) -> Any:
  """Returns a constant initializer with named axes."""
  return nn.with_logical_partitioning(nn.initializers.constant(value), axes)


def uniform_init(bound: float, *axes: str | None, zeros: int = 0) -> Any:
  """Returns an initializer U(−bound, bound) whose last `zeros` rows are 0."""

  def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    values = jax.random.uniform(key, shape, dtype, -bound, bound)
    return values.at[len(values) - zeros :].set(0)

  return nn.with_logical_partitioning(init, axes)


def gelu(x: Array) -> Array:
  """Computes GELU in its tanh form, as in GPT-2."""
  return nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Prologue] = {
  "gelu_tanh": gelu,
  "gelu": functools.partial(nn.gelu, approximate=False),
  "relu": nn.relu,
  "silu": nn.silu,
}


@functools.cache
def activation(name: str, gated: bool) -> Prologue:
  """Returns the activation; if gated, act(first half) · second half.

  The result takes (x, axis=-1). The halves of x are those of its feature axis,
  [M, 2 F] or [2 F, B], or have an axis of their own, [M, 2, F] or [2, F, B].
  """
  function = ACTIVATIONS[name]
  if not gated:
    return lambda x, axis=-1: function(x)

  def gated_activation(x: Array, axis: int = -1) -> Array:
    if x.ndim == 3:
      gate, values = jnp.moveaxis(x, 0 if axis == 0 else 1, 0)
    else:
      gate, values = jnp.split(x, 2, axis=axis)
    return function(gate) * values

  return gated_activation


def layer_norm(
  x: Array, scale: Array, bias: Array, axis: int = -1, epsilon: float = EPSILON
) -> Array:
  """Computes LayerNorm over an axis, in float32; returns x's type."""
  y = x.astype(jnp.float32)
  y -= y.mean(axis=axis, keepdims=True)
  variance = jnp.square(y).mean(axis=axis, keepdims=True)
  y *= jax.lax.rsqrt(variance + epsilon)
  return (y * scale + bias).astype(x.dtype)


def rms_norm(
  x: Array, scale: Array, axis: int = -1, *, epsilon: float, offset: float
) -> Array:
  """Computes RMSNorm (arXiv:1910.07467) over an axis, times scale + offset."""
  y = x.astype(jnp.float32)
  mean_square = jnp.square(y).mean(axis=axis, keepdims=True)
  y *= jax.lax.rsqrt(mean_square + epsilon)
  return (y * (scale + offset)).astype(x.dtype)


@functools.cache
def norm_function(kind: str, epsilon: float) -> Prologue:
  """Returns the function (x, *weights, axis) of a `config.Model.norm`."""
  if kind == "layer":
    return functools.partial(layer_norm, epsilon=epsilon)
  offset = 1.0 if kind == "gemma_rms" else 0.0
  return functools.partial(rms_norm, epsilon=epsilon, offset=offset)


class Norm(nn.Module):
  """LayerNorm or RMSNorm.

  A dense layer may take its `function` and `weights` as a prologue.
  """

  width: int
  kind: str = "layer"  # of config.Model.norm
  epsilon: float = EPSILON
  axis_name: str | None = "embed"  # logical axis of the weights

  def setup(self):
    shape = (self.width,)
    start = 0.0 if self.kind == "gemma_rms" else 1.0
    self.scale = self.param("scale", vector_init(start, self.axis_name), shape)
    if self.kind == "layer":
      self.bias = self.param("bias", vector_init(0.0, self.axis_name), shape)

  @property
  def function(self) -> Prologue:
    """The function (x, *weights, axis=-1) → x normalised over an axis."""
    return norm_function(self.kind, self.epsilon)

  def weights(self) -> tuple[Array, ...]:
    """Returns the scale, and the bias of LayerNorm."""
    if self.kind == "layer":
      return self.scale, self.bias
    return (self.scale,)

  def __call__(self, x: Array, axis: int = -1) -> Array:
    """Normalises x over its feature axis."""
    if axis == feature_major.AXIS:
      columns = (w[:, None] for w in self.weights())
      return self.function(x, *columns, axis=axis)
    return self.function(x, *self.weights())


class Dense(nn.Module):
  """A dense layer, whose kernel may have several axes (of heads).

  Its inputs and outputs are flat: with more than two axes XLA's CPU compiler
  writes transpositions into the element-wise loops of the gradient, which then
  take several times as long.

  With parameters of `feature_major.transpose_kernels`, adapters are merged into
  the kernel and nothing is trained.
  """

  shape: tuple[int, ...]  # of the kernel
  axes: tuple[str | None, ...]  # logical axes of the kernel
  stddev: float  # of a new kernel
  dtype: Any
  inputs: int = 1  # number of the kernel's axes that are inputs
  use_bias: bool = True
  rank: int = 0  # of a LoRA adapter; 0 is none
  alpha: float = 1.0  # of the adapter
  zeros: int = 0  # rows at the kernel's end that are 0 and stay 0

  def __call__(
    self,
    x: Array,
    prologue: Prologue = identity,
    weights: tuple[Array, ...] = (),
    axis: int = -1,
  ) -> Array:
    """Computes prologue(x, *weights) · kernel + bias.

    Args:
      x: input of the prologue, [M, ·], or [·, B] with axis 0.
      prologue: see `kernels.dense`.
      weights: weights of the prologue.
      axis: the feature axis.

    Returns:
      [M, outputs], or [outputs, B].
    """
    return self.split(x, 1, prologue, weights, axis)[0]

  @nn.compact
  def split(
    self,
    x: Array,
    parts: int,
    prologue: Prologue = identity,
    weights: tuple[Array, ...] = (),
    axis: int = -1,
  ) -> Sequence[Array] | Array:
    """Computes `__call__`, split along the outputs' first axis.

    Returns:
      `parts` arrays [M, outputs / parts], or [parts, outputs / parts, B].
    """
    if axis == feature_major.AXIS:
      columns = [w[:, None] for w in weights]
      return self._split_feature_major(prologue(x, *columns, axis=axis), parts)
    kernel, bias = self._flat_weights(parts)
    x = x.astype(self.dtype)
    output: Array = dense(prologue, x, weights, kernel, bias)
    if self.rank and not self.has_variable("params", TRANSPOSED):
      down, up = self._adapter()
      low: Array = dense(prologue, x, weights, down, None)
      low *= self.alpha / self.rank
      up = self._interleave(up, parts)
      output = jnp.add(output, dense(identity, low, (), up, None))
    shards = self._shards(parts)
    name = self.axes[self.inputs + (shards > 1)]
    output = checkpoint_name(
      sharding.shard(output, "batch", name), CHECKPOINT_NAME
    )
    if parts == 1:
      return [output]
    if shards == 1:
      return jnp.split(output, parts, axis=1)
    output = output.reshape(len(output), shards, parts, -1)
    return [output[:, :, i].reshape(len(output), -1) for i in range(parts)]

  def _split_feature_major(self, x: Array, parts: int) -> Array:
    """Computes `split` on [inputs, B], by a transposed kernel."""
    kernel = self.get_variable("params", TRANSPOSED)
    bias = self.get_variable("params", "bias") if self.use_bias else None
    if self._shards(parts) > 1:
      name = self.axes[self.inputs + 1]
      return jnp.stack(
        [
          feature_major.matmul(
            kernel[i], None if bias is None else bias[i], x, name
          )
          for i in range(parts)
        ]
      )
    name = self.axes[self.inputs]
    output = feature_major.matmul(kernel, bias, x, name)
    return output.reshape(parts, -1, x.shape[1])

  def _flat_weights(self, parts: int) -> tuple[Array, Array | None]:
    """Returns the kernel [inputs, outputs] and the bias [outputs]."""
    inputs = math.prod(self.shape[: self.inputs])
    if self.has_variable("params", TRANSPOSED):
      kernel = self.get_variable("params", TRANSPOSED).reshape(-1, inputs).T
    else:
      kernel = self.param(
        "kernel", kernel_init(self.stddev, *self.axes), self.shape
      ).reshape(inputs, -1)
    bias = None
    if self.use_bias:
      outputs = slice(self.inputs, None)
      init = vector_init(0.0, *self.axes[outputs])
      bias = self.param("bias", init, self.shape[outputs]).ravel()
      bias = self._interleave(bias, parts)
    return self._interleave(kernel, parts), bias

  def _shards(self, parts: int) -> int:
    """Returns the number of shards of each part of the outputs."""
    axis = self.inputs + 1
    if parts == 1:
      return 1
    return sharding.num_shards(self.axes[axis], self.shape[axis])

  def _interleave(self, x: Array, parts: int) -> Array:
    """Orders [..., outputs] so that a shard has its piece of each part."""
    shards = self._shards(parts)
    if shards == 1:
      return x
    pieces = x.reshape(*x.shape[:-1], parts, shards, -1)
    return pieces.swapaxes(-3, -2).reshape(x.shape)

  def _adapter(self) -> tuple[Array, Array]:
    """Returns A [I, R] and B [R, O]; A · B is 0 at the start."""
    inputs, outputs = slice(self.inputs), slice(self.inputs, None)
    size = math.prod(self.shape[inputs])
    down = self.param(
      "lora_a",
      uniform_init(size**-0.5, *self.axes[inputs], None, zeros=self.zeros),
      (*self.shape[inputs], self.rank),
    )
    up = self.param(
      "lora_b",
      vector_init(0.0, None, *self.axes[outputs]),
      (self.rank, *self.shape[outputs]),
    )
    return down.reshape(size, self.rank), up.reshape(self.rank, -1)
