"""Shares of requests: each process works on some, and gets all results."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from instructgpt_jax.errors import UserError


def share(requests: Sequence[Any]) -> slice:
  """Returns which requests this process works on."""
  count, index = jax.process_count(), jax.process_index()
  return slice(
    len(requests) * index // count, len(requests) * (index + 1) // count
  )


def gather(results: list[Any], requests: Sequence[Any]) -> list[Any]:
  """Returns the results of all processes, in the order of the requests.

  Raises:
    UserError: `other_requests`, the processes were asked different things.
  """
  if jax.process_count() == 1:
    return results
  checksum = zlib.crc32(json.dumps(list(requests)).encode())
  data = np.frombuffer(json.dumps(results).encode(), np.uint8)
  sizes, checksums = multihost_utils.process_allgather(
    np.array([len(data), checksum], np.uint32)
  ).T
  if len(set(checksums.tolist())) > 1:
    raise UserError(
      "the processes of this run score different requests",
      fix="start all processes with the same command and the same cache",
      code="other_requests",
    )
  padded = np.zeros(max(sizes), np.uint8)
  padded[: len(data)] = data
  parts = multihost_utils.process_allgather(padded)
  return [
    result
    for part, size in zip(parts, sizes, strict=True)
    for result in json.loads(part[:size].tobytes())
  ]
