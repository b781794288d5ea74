"""Number of rows in a step of SFT, the same on every mesh."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.data import batching
from instructgpt_jax.distributed import mesh as mesh_lib


class Padded(NamedTuple):
  """Rows of a step on a mesh."""

  rows: int  # with rows of weight 0, a multiple of `microbatch`
  microbatch: int  # rows at a time


@dataclasses.dataclass(frozen=True)
class StepLayout:
  """Rows of a step, before the padding that a mesh needs.

  Attributes:
    demonstration_rows: rows of demonstrations.
    fraction: share of pretraining rows in the run.
    microbatches: number of microbatches of the rows.
  """

  demonstration_rows: int
  fraction: float
  microbatches: int

  @property
  def rows(self) -> int:
    """Returns the most rows of a step that are not padding."""
    mixture = batching.Mixture(self.fraction, self.demonstration_rows)
    return self.demonstration_rows + mixture.most

  def padded(self, mesh: mesh_lib.AnyMesh) -> Padded:
    """Pads each microbatch to a multiple of the shards of a batch.

    The number of microbatches stays, and with it which rows are in which one,
    so that dropout draws alike on every mesh.
    """
    microbatch = mesh_lib.round_up_to_shards(
      -(-self.rows // self.microbatches), mesh
    )
    return Padded(microbatch * self.microbatches, microbatch)


def step_layout(
  section: configs.Sft, rows: int, demonstrations: float
) -> StepLayout:
  """Chooses the rows so that they hold about `batch_size` demonstrations.

  Args:
    section: the settings.
    rows: rows of all demonstrations.
    demonstrations: how many demonstrations as many rows hold.
  """
  per_step = round(section.batch_size * rows / demonstrations)
  whole = StepLayout(
    max(1, min(rows, per_step)), section.pretraining_fraction, 1
  )
  parts = -(-whole.rows // section.microbatch) if section.microbatch else 1
  return dataclasses.replace(whole, microbatches=parts)
