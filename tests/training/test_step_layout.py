"""The rows of a step of SFT, on any mesh."""

import dataclasses

import pytest

from instructgpt_jax import configs
from instructgpt_jax.configs import presets
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.training import step_layout

DEVICES = (1, 2, 3, 8, 64)


def mesh_of(count):
  return mesh_lib.abstract_mesh(configs.Mesh(), count, "tpu")


@pytest.mark.parametrize("microbatch", [None, 1, 3, 4, 32, 500])
@pytest.mark.parametrize("fraction", [0.0, 0.1])
@pytest.mark.parametrize("per_row", [1, 2.5, 20, 40])
def test_a_mesh_adds_padding_and_nothing_else(per_row, fraction, microbatch):
  section = dataclasses.replace(
    presets.sft("1.3b").sft,
    microbatch=microbatch,
    pretraining_fraction=fraction,
  )
  layout = step_layout.step_layout(section, 1000, round(1000 * per_row))
  assert layout.demonstration_rows == max(1, round(32 / per_row))
  for count in DEVICES:
    padded = layout.padded(mesh_of(count))
    assert padded.rows >= layout.rows
    assert padded.rows % count == padded.microbatch % count == 0
    # Rows stay in their microbatches, so dropout masks do not change.
    assert padded.rows == padded.microbatch * layout.microbatches
    # No microbatch could be left out, nor be a shard smaller.
    assert padded.rows - layout.rows < count * layout.microbatches + (
      layout.microbatches
    )
  alone = layout.padded(mesh_of(1))
  assert not microbatch or alone.microbatch <= microbatch


def test_a_step_has_no_more_rows_than_there_are():
  section = dataclasses.replace(configs.Sft(), batch_size=32)
  assert step_layout.step_layout(section, 3, 10).demonstration_rows == 3
  assert step_layout.step_layout(section, 1, 100).demonstration_rows == 1
