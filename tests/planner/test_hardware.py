"""Tests of topologies and of the bandwidth of mesh axes."""

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.planner import hardware


def test_bandwidths_on_a_torus():
  topology = hardware.parse_topology("v5p:8x8x8")
  assert (topology.num_chips, str(topology)) == (512, "v5p:8x8x8")
  link = topology.chip.link_bandwidth
  # tensor fills one dimension, a ring of two links; fsdp the two others.
  assert topology.axis_bandwidths((1, 64, 8)) == [link, 4 * link, 2 * link]
  # Half a dimension is a line.
  assert topology.axis_bandwidths((1, 128, 4)) == [link, 5 * link, link]
  assert (
    hardware.parse_topology("v5p:2x2x1").axis_bandwidths((1, 4, 1))[1]
    == 2 * link
  )


def test_bandwidths_behind_switches():
  topology = hardware.parse_topology("h100:64")
  chip = topology.chip
  assert topology.axis_bandwidths((8, 1, 8)) == [
    chip.host_bandwidth,
    chip.link_bandwidth,
    chip.link_bandwidth,
  ]
  assert topology.axis_bandwidths((1, 64, 1)) == [
    chip.link_bandwidth,
    chip.host_bandwidth,
    chip.link_bandwidth,
  ]
  assert (
    hardware.parse_topology("h100:8").axis_bandwidths((1, 8, 1))[1]
    == chip.link_bandwidth
  )


@pytest.mark.parametrize(
  "text, code",
  [
    ("v5p", "bad_topology"),
    ("v5p:8x8", "bad_topology_shape"),
    ("v5p:8x8x0", "bad_topology_shape"),
    ("v5q:8x8x8", "unknown_chip"),
    ("h100:2x2", "bad_topology_shape"),
  ],
)
def test_invalid_topologies_are_refused(text, code):
  with pytest.raises(UserError) as error:
    hardware.parse_topology(text)
  assert (error.value.field, error.value.code) == ("--topology", code)
