"""Topologies and how fast their axes are."""

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.planner import hardware


def test_a_torus():
  found = hardware.topology("v5p:8x8x8")
  assert (found.count, str(found)) == (512, "v5p:8x8x8")
  link = found.chip.link
  # tensor fills one dimension, a ring of two links; fsdp the two others.
  assert found.bandwidths((1, 64, 8)) == [link, 4 * link, 2 * link]
  # Half a dimension is a line.
  assert found.bandwidths((1, 128, 4)) == [link, 5 * link, link]
  assert hardware.topology("v5p:2x2x1").bandwidths((1, 4, 1))[1] == 2 * link


def test_switches():
  found = hardware.topology("h100:64")
  chip = found.chip
  assert found.bandwidths((8, 1, 8)) == [chip.between, chip.link, chip.link]
  assert found.bandwidths((1, 64, 1)) == [chip.link, chip.between, chip.link]
  assert hardware.topology("h100:8").bandwidths((1, 8, 1))[1] == chip.link


@pytest.mark.parametrize(
  "text, said",
  [
    ("v5p", "is not CHIP:SHAPE"),
    ("v5p:8x8", "is not 3 numbers"),
    ("v5p:8x8x0", "is not 3 numbers"),
    ("v5q:8x8x8", "did you mean 'v5p'"),
    ("h100:2x2", "is not 1 number"),
  ],
)
def test_what_is_no_topology(text, said):
  with pytest.raises(UserError, match=said) as caught:
    hardware.topology(text)
  assert caught.value.field == "--topology"
