"""Dense layers that keep nothing but their input for the gradient.

A norm or an activation ahead of a matrix product is computed anew in the
gradient: it is cheap, and what is kept must be written, held and read. A block
of width D then keeps 10 D numbers a token instead of 27 D.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from instructgpt_jax import precision, sharding
from instructgpt_jax.types import Array, PyTree

EPSILON = 1e-5  # of LayerNorm
CHECKPOINT_NAME = "dense"  # what a checkpoint policy may call a layer's output
TRANSPOSED = "transposed"  # a kernel whose outputs come first
# A CPU is slow at a transposed left side times fewer columns than this.
_NARROW = 512

Before = Callable[..., Array]  # (x, *weights) → what the kernel is applied to


def kernel_init(stddev: float, *axes: str | None) -> Any:
  """N(0, stddev²), with the names of its axes."""
  return nn.with_logical_partitioning(nn.initializers.normal(stddev), axes)


def vector_init(value: float, *axes: str | None) -> Any:
  """A constant, with the names of its axes."""
  return nn.with_logical_partitioning(nn.initializers.constant(value), axes)


def uniform_init(bound: float, *axes: str | None, zeros: int = 0) -> Any:
  """U(−bound, bound), the last `zeros` rows 0, with the names of its axes."""

  def draw(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    found = jax.random.uniform(key, shape, dtype, -bound, bound)
    return found.at[len(found) - zeros :].set(0)

  return nn.with_logical_partitioning(draw, axes)


def _same(x: Array) -> Array:
  return x


def gelu(x: Array) -> Array:
  """The tanh form, as in GPT-2."""
  return nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Before] = {
  "gelu_tanh": gelu,
  "gelu": functools.partial(nn.gelu, approximate=False),
  "relu": nn.relu,
  "silu": nn.silu,
}


@functools.cache
def activation(name: str, gated: bool) -> Before:
  """Of [M, F], or of the first half of [M, 2 F] or [M, 2, F] times the second.

  An axis may be named; it is the last one. The halves of [2, F, B] are on 0.
  """
  function = ACTIVATIONS[name]
  if not gated:
    return lambda x, axis=-1: function(x)

  def product(x: Array, axis: int = -1) -> Array:
    if x.ndim == 3:
      gate, values = jnp.moveaxis(x, 0 if axis == 0 else 1, 0)
    else:
      gate, values = jnp.split(x, 2, axis=axis)
    return function(gate) * values

  return product


def layer_norm(
  x: Array, scale: Array, bias: Array, axis: int = -1, epsilon: float = EPSILON
) -> Array:
  """LayerNorm over an axis, in float32; in the input's shape and type."""
  found = x.astype(jnp.float32)
  found -= found.mean(axis=axis, keepdims=True)
  variance = jnp.square(found).mean(axis=axis, keepdims=True)
  found *= jax.lax.rsqrt(variance + epsilon)
  return (found * scale + bias).astype(x.dtype)


def rms_norm(
  x: Array, scale: Array, axis: int = -1, *, epsilon: float, offset: float
) -> Array:
  """RMSNorm (arXiv:1910.07467) over an axis, times scale + offset."""
  found = x.astype(jnp.float32)
  square = jnp.square(found).mean(axis=axis, keepdims=True)
  found *= jax.lax.rsqrt(square + epsilon)
  return (found * (scale + offset)).astype(x.dtype)


@functools.cache
def norm_function(kind: str, epsilon: float) -> Before:
  """(x, *weights, axis) → x normalised as `config.Model.norm` says."""
  if kind == "layer":
    return functools.partial(layer_norm, epsilon=epsilon)
  offset = 1.0 if kind == "gemma_rms" else 0.0
  return functools.partial(rms_norm, epsilon=epsilon, offset=offset)


def optimization_barrier(x: Array, done: PyTree) -> Array:
  """x, but the compiler cannot tell before it has computed `done`.

  What is made of it is computed no earlier, and again where it was before.
  XLA's CPU compiler drops optimisation barriers before it merges equal
  expressions and orders them, so it is given a zero that it cannot see through.

  Args:
    x: any array.
    done: of which a CPU waits for the first leaf, others for all.
  """

  def cpu(x, done):
    leaf = jax.tree.leaves(done)[0]
    first = leaf[(0,) * leaf.ndim]
    return x + jnp.minimum(jnp.abs(first), 0).astype(x.dtype)

  def barrier(x, done):
    return jax.lax.optimization_barrier((x, done))[0]

  return jax.lax.platform_dependent(x, done, cpu=cpu, default=barrier)


def _of_kernel(inputs: Array, slope: Array) -> Array:
  """inputsᵀ · slope, [M, I] and [M, O] → [I, O] float32."""

  def product(a: Array, b: Array) -> Array:
    return jax.lax.dot_general(
      a,
      b,
      (((0,), (0,)), ((), ())),
      precision=precision.of(a.dtype),
      preferred_element_type=jnp.float32,
    )

  if slope.shape[1] >= min(_NARROW, inputs.shape[1]):
    return product(inputs, slope)
  return jax.lax.platform_dependent(
    inputs,
    slope,
    cpu=lambda inputs, slope: (
      optimization_barrier(product(slope, inputs), slope).T
    ),
    default=product,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dense(
  before: Before,
  x: Array,
  weights: tuple[Array, ...],
  kernel: Array,
  bias: Array | None,
) -> Array:
  """before(x, *weights) · kernel + bias, of which only x is kept.

  Args:
    before: a cheap function of x and weights, [M, I] in x's type.
    x: [M, I].
    weights: of `before`.
    kernel: [I, O] float32.
    bias: [O] float32, or None.

  Returns:
    [M, O] in x's type.
  """
  product = precision.matmul(before(x, *weights), kernel.astype(x.dtype))
  return product if bias is None else product + bias.astype(x.dtype)


def _forward(before, x, weights, kernel, bias):
  return dense(before, x, weights, kernel, bias), (x, weights, kernel, bias)


def _backward(before, saved, slope):
  x, weights, kernel, bias = saved
  inputs, pull = jax.vjp(before, optimization_barrier(x, slope), *weights)
  of_x, *of_weights = pull(precision.matmul(slope, kernel.T.astype(x.dtype)))
  of_bias = None
  if bias is not None:
    of_bias = slope.astype(jnp.float32).sum(axis=0)
  return of_x, tuple(of_weights), _of_kernel(inputs, slope), of_bias


dense.defvjp(_forward, _backward)


class Norm(nn.Module):
  """Weights of a norm, which a dense layer may take ahead of itself."""

  width: int
  kind: str = "layer"  # of config.Model.norm
  epsilon: float = EPSILON
  axis: str | None = "embed"  # name of what is normalised

  def setup(self):
    shape = (self.width,)
    start = 0.0 if self.kind == "gemma_rms" else 1.0
    self.scale = self.param("scale", vector_init(start, self.axis), shape)
    if self.kind == "layer":
      self.bias = self.param("bias", vector_init(0.0, self.axis), shape)

  @property
  def function(self) -> Before:
    """(x, *weights) → x normalised over its last axis."""
    return norm_function(self.kind, self.epsilon)

  def weights(self) -> tuple[Array, ...]:
    if self.kind == "layer":
      return self.scale, self.bias
    return (self.scale,)

  def __call__(self, x: Array) -> Array:
    return self.function(x, *self.weights())

  def columns(self, x: Array) -> Array:
    """[D, B] → [D, B]."""
    weights = (w[:, None] for w in self.weights())
    return self.function(x, *weights, axis=0)


class Dense(nn.Module):
  """A dense layer of flat rows, whose kernel may have more axes (of heads).

  Given more axes than two, XLA's CPU compiler writes transpositions into the
  element-wise loops of the gradient, which then take several times as long.

  Its kernel may be given with the outputs first, as `TRANSPOSED`, any adapter
  added to it; nothing is trained then.
  """

  shape: tuple[int, ...]  # of the kernel
  axes: tuple[str | None, ...]  # their names
  stddev: float  # of the kernel at the start
  dtype: Any
  inputs: int = 1  # how many of the kernel's axes are the input's
  use_bias: bool = True
  rank: int = 0  # of an adapter; 0 is none
  alpha: float = 1.0  # of the adapter
  zeros: int = 0  # rows at the kernel's end that are 0 and stay so

  def __call__(
    self, x: Array, before: Before = _same, weights: tuple[Array, ...] = ()
  ) -> Array:
    """[M, ·] → [M, outputs], the product of their axes.

    Args:
      x: what `before` makes [M, inputs] of.
      before: see `dense`.
      weights: of `before`.
    """
    return self.split(x, 1, before, weights)[0]

  @nn.compact
  def split(
    self,
    x: Array,
    parts: int,
    before: Before = _same,
    weights: tuple[Array, ...] = (),
  ) -> list[Array]:
    """What `__call__` gives, cut along the outputs' first axis."""
    outputs = slice(self.inputs, None)
    size = math.prod(self.shape[: self.inputs])
    transposed = self.has_variable("params", TRANSPOSED)
    if transposed:
      kernel = self.get_variable("params", TRANSPOSED).reshape(-1, size).T
    else:
      kernel = self.param(
        "kernel", kernel_init(self.stddev, *self.axes), self.shape
      ).reshape(size, -1)
    bias = None
    if self.use_bias:
      bias = self._flat(
        self.param(
          "bias", vector_init(0.0, *self.axes[outputs]), self.shape[outputs]
        ).ravel(),
        parts,
      )
    x = x.astype(self.dtype)
    kernel = self._flat(kernel, parts)
    found: Array = dense(before, x, weights, kernel, bias)
    if self.rank and not transposed:
      down, up = self._adapter()
      low: Array = dense(before, x, weights, down, None)
      low *= self.alpha / self.rank
      found = jnp.add(found, dense(_same, low, (), self._flat(up, parts), None))
    name = self.axes[self.inputs + (self._shards(parts) > 1)]
    found = checkpoint_name(
      sharding.shard(found, "batch", name), CHECKPOINT_NAME
    )
    if parts == 1:
      return [found]
    if self._shards(parts) == 1:
      return jnp.split(found, parts, axis=1)
    found = found.reshape(len(found), self._shards(parts), parts, -1)
    return [found[:, :, i].reshape(len(found), -1) for i in range(parts)]

  def _shards(self, parts: int) -> int:
    """Into how many the mesh splits each part of the outputs."""
    after = self.inputs + 1
    return (
      sharding.num_shards(self.axes[after], self.shape[after])
      if parts > 1
      else 1
    )

  def _flat(self, x: Array, parts: int) -> Array:
    """[..., outputs], those of one shard of all parts side by side."""
    shards = self._shards(parts)
    if shards == 1:
      return x
    apart = x.reshape(*x.shape[:-1], parts, shards, -1)
    return apart.swapaxes(-3, -2).reshape(x.shape)

  def _adapter(self) -> tuple[Array, Array]:
    """[I, R] and [R, O], whose product starts at 0."""
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

  def columns(self, x: Array) -> Array:
    """[inputs, B] → [outputs, B], by a transposed kernel."""
    return self.split_columns(x, 1)[0]

  def split_columns(self, x: Array, parts: int) -> Array:
    """What `columns` gives, as [parts, outputs / parts, B]."""
    kernel = self.get_variable("params", TRANSPOSED)
    bias = None
    if self.use_bias:
      bias = self.get_variable("params", "bias")

    def product(chosen: int | slice, name: str | None) -> Array:
      weights = kernel[chosen].reshape(-1, len(x)).astype(x.dtype)
      output = precision.matmul(weights, x)
      output = sharding.shard(output, name, "decode_batch")
      if bias is None:
        return output
      return output + bias[chosen].reshape(-1, 1).astype(x.dtype)

    first = self.axes[self.inputs]
    if self._shards(parts) > 1:
      after = self.axes[self.inputs + 1]
      return jnp.stack([product(part, after) for part in range(parts)])
    return product(slice(None), first).reshape(parts, -1, x.shape[1])
