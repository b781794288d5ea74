"""Tests of costs of compiled HLO against numbers worked out by hand."""

import textwrap

import jax
import jax.numpy as jnp
import pytest

from instructgpt_jax.planner import hlo
from instructgpt_jax.steps import accumulation

MODULE = textwrap.dedent("""
  HloModule jit_step, is_scheduled=true

  %fused (p0: bf16[3,8,16], p1: s32[], p2: bf16[4,8]) -> bf16[4,16] {
    %p0 = bf16[3,8,16]{2,1,0} parameter(0)
    %p1 = s32[] parameter(1)
    %zero = s32[] constant(0)
    %slice = bf16[1,8,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,16}
    %flat = bf16[8,16]{1,0} bitcast(%slice)
    %p2 = bf16[4,8]{1,0} parameter(2)
    ROOT %product = bf16[4,16]{1,0} convolution(%p2, %flat), dim_labels=bf_io->bf
  }

  %all-reduce-scatter.1 (input: f32[8,16]) -> f32[8,4] {
    %input = f32[8,16]{1,0} parameter(0)
    %sum = f32[8,16]{1,0} all-reduce(%input), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
    %at = s32[] constant(0)
    ROOT %part = f32[8,4]{1,0} dynamic-slice(%sum, %at, %at), dynamic_slice_sizes={8,4}
  }

  %condition (state: (s32[], bf16[4,8])) -> pred[] {
    %state.1 = (s32[], bf16[4,8]) parameter(0)
    %limit = s32[] constant(6)
    %counter = s32[] get-tuple-element(%state.1), index=0
    ROOT %less = pred[] compare(%counter, %limit), direction=LT
  }

  %body (state: (s32[], bf16[4,8], bf16[3,8,16])) -> (s32[], bf16[4,8], bf16[3,8,16]) {
    %state.2 = (s32[], bf16[4,8], bf16[3,8,16]) parameter(0)
    %i = s32[] get-tuple-element(%state.2), index=0
    %two = s32[] constant(2)
    %next = s32[] add(%i, %two)
    %rows = bf16[4,8]{1,0} get-tuple-element(%state.2), index=1
    %weights = bf16[3,8,16]{2,1,0} get-tuple-element(%state.2), index=2
    %made = bf16[4,16]{1,0} fusion(%weights, %i, %rows), kind=kOutput, calls=%fused
    %gathered = bf16[8,16]{1,0} all-gather(%made), replica_groups=mesh['x'=4,'y'=2] {'y'}, dimensions={0}
    ROOT %out = (s32[], bf16[4,8], bf16[3,8,16]) tuple(%next, %rows, %weights)
  }

  ENTRY %main (a: bf16[4,8], b: bf16[3,8,16], c: f32[8,16]) -> f32[8,4] {
    %a = bf16[4,8]{1,0} parameter(0)
    %b = bf16[3,8,16]{2,1,0} parameter(1)
    %c = f32[8,16]{1,0} parameter(2)
    %start = s32[] constant(0)
    %first = (s32[], bf16[4,8], bf16[3,8,16]) tuple(%start, %a, %b)
    %loop = (s32[], bf16[4,8], bf16[3,8,16]) while(%first), condition=%condition, body=%body
    ROOT %result = f32[8,4]{1,0} fusion(%c), kind=kCustom, calls=%all-reduce-scatter.1
  }
""")  # noqa: E501
MESH = {"data": 1, "fsdp": 4, "tensor": 2}


def test_a_loop_a_fusion_and_two_collectives():
  cost = hlo.HloModule(MODULE, MESH, trips=99).cost()
  trips = 3  # by twos, up to 6
  assert cost.flops == trips * 2 * 4 * 8 * 16
  sliced, rows, made = 2 * 8 * 16, 2 * 4 * 8, 2 * 4 * 16
  inside = sliced + 4 + rows + made
  counter = 3 * 4  # the sum of two numbers
  scattered = 4 * 8 * 16 + 4 * 8 * 4
  assert cost.hbm_bytes == trips * (inside + counter) + scattered
  assert cost.sent == {
    "tensor": trips * 2 * 8 * 16 / 2,
    "fsdp": 3 / 4 * 4 * 8 * 16,
  }


# The metadata of a kernel spans several lines.
KERNEL = textwrap.dedent("""
  HloModule jit_attend, is_scheduled=true

  ENTRY %main (i: s8[1,2,2], q: bf16[3,1024,64], m: s32[4,512,512]) -> bf16[3,1024,64] {
    %i = s8[1,2,2]{2,1,0} parameter(0)
    %q = bf16[3,1024,64]{2,1,0} parameter(1)
    %m = s32[4,512,512]{2,1,0} parameter(2)
    %splash_mha_fwd_residuals.7 = (f32[512,128]{1,0}, bf16[3,1024,64]{2,1,0}) custom-call(%i, %i, %i, %q, %q, /*index=5*/%q, %m), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
  "xprof_metadata":"{\\"block_q\\": 512}"
  }}, metadata={op_name="jit(attend)/pallas_call"}
    ROOT %result = bf16[3,1024,64]{2,1,0} get-tuple-element(%splash_mha_fwd_residuals.7), index=1, frontend_attributes={kernel_metadata={
  "xprof_metadata":"{\\"block_q\\": 512}"
  }}
  }
""")  # noqa: E501


def test_an_attention_kernel():
  """Two matmuls for three of four blocks."""
  cost = hlo.HloModule(KERNEL, MESH, trips=1).cost()
  assert cost.flops == 2 * 2 * 3 * 64 * (3 * 512 * 512)
  queries, mask = 2 * 3 * 1024 * 64, 4 * 4 * 512 * 512
  assert cost.hbm_bytes == 3 * 4 + 4 * queries + mask + 4 * 512 * 128


def test_each_op_takes_the_longer_of_compute_and_memory():
  cost = hlo.HloCost(ops=[hlo.Op("a", 2, 8.0, 1.0), hlo.Op("b", 1, 1.0, 6.0)])
  assert cost.seconds(flops=4.0, bandwidth=2.0) == pytest.approx(2 * 2 + 3)


@pytest.mark.parametrize(
  "window, shapes, inner",
  [
    # [5, 7] · [7, 3].
    ("", "bf16[5,7] bf16[7,3] bf16[5,3] bf_io->bf", 7),
    # A batch of 4 matmuls, as a convolution over a spread axis.
    (
      "window={size=4 stride=3 lhs_dilate=4}, ",
      "bf16[4,5,7] bf16[4,7,3] bf16[4,5,3] 0bf_0io->0bf",
      7,
    ),
    # Two blocks of columns, each of its own kernel.
    (
      "window={size=2 pad=1_1 rhs_reversal=1}, ",
      "bf16[5,7,1] bf16[7,2,3] bf16[5,2,3] bf0_i0o->b0f",
      7,
    ),
    # A sum over an axis of two as well.
    (
      "window={size=2}, ",
      "bf16[5,2,7] bf16[2,7,3] bf16[5,3,1] b0f_0io->bf0",
      14,
    ),
  ],
)
def test_matmuls_that_are_convolutions(window, shapes, inner):
  left, right, out, labels = shapes.split()
  text = f"""
ENTRY %main (a: {left}, b: {right}) -> {out} {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %c = {out} convolution(%a, %b), {window}dim_labels={labels}
}}
"""
  cost = hlo.HloModule(text, MESH, trips=1).cost()
  batch = 4 if left.startswith("bf16[4") else 1
  columns = 6 if labels.startswith("bf0_") else 3
  assert cost.flops == 2 * batch * 5 * inner * columns


def test_a_loop_with_a_constant_bound():
  """XLA rewrites the condition of a bounded loop on the CPU."""

  def run(a, b):
    used = (a.sum() > 0).astype(jnp.int32)
    return accumulation.bounded_fori_loop(
      used, 4, lambda _, x: jnp.tanh(x @ b), a
    )

  shape = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  text = jax.jit(run).lower(shape, shape).compile().as_text()
  ops = hlo.HloModule(text, {}, trips=99).cost().ops
  assert {op.count for op in ops} == {1, 4}


def test_a_loop_whose_end_depends_on_data():
  """A constant in its condition is not a bound."""
  counts = "ROOT %less = pred[] compare(%counter, %limit), direction=LT"
  assert counts in MODULE
  asks = """%many = pred[] compare(%counter, %limit), direction=GE
    %few = pred[] not(%many)
    ROOT %both = pred[] and(%few, %few)"""
  cost = hlo.HloModule(MODULE.replace(counts, asks), MESH, trips=99).cost()
  assert cost.flops == 99 * 2 * 4 * 8 * 16
