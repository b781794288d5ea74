"""The time of each request, and the server's memory, under many labelers."""

from __future__ import annotations

import math
import pathlib
import random
import time
from typing import Any

from benchmarks.labeling_site import Server, Work, join_all, make_site
from instructgpt_jax.labeling import simulated

_DRAFTS = 3


def load(
  directory: pathlib.Path,
  *,
  labelers: int,
  seconds: float,
  think: float,
  completions: int,
) -> dict[str, Any]:
  """Measures saving under load; returns percentiles in milliseconds.

  Each labeler reads an item, saves drafts of it, and submits it, with a pause
  of `think` seconds before each save: pages save half a second after a key.
  """
  # More items than they can do, so that nobody runs out of work.
  per_label = think * (_DRAFTS + 1)
  prompts = math.ceil(labelers * seconds / max(per_label, 0.05)) + labelers
  prompts = min(prompts, 2000)
  site = make_site(
    directory,
    labelers=labelers,
    prompts=prompts,
    completions=completions,
    overlap=3,
  )
  server = Server(site.store)
  memory = []
  try:
    crew = join_all(site, server.port)
    for client, _ in crew:
      client.seconds.clear()
    cpu = server.cpu_seconds()
    end = time.monotonic() + seconds
    done: list[simulated.Acknowledged] = []

    def label(client: simulated.Client, persona: simulated.Persona) -> None:
      rng = random.Random(persona.name)

      def pause() -> None:
        time.sleep(rng.uniform(0.5, 1.5) * think)

      for one in simulated.work_items(
        client, persona, site.world, drafts=_DRAFTS, think=pause
      ):
        done.append(one)
        if time.monotonic() > end:
          return

    work = Work(crew, label)
    while time.monotonic() < end:
      memory.append(server.memory())
      time.sleep(min(1.0, seconds / 10))
    work.wait()
    cpu = server.cpu_seconds() - cpu
    memory.append(server.memory())
  finally:
    server.stop()
  figures: dict[str, Any] = {"labels": len(done)}
  for name in ("draft", "submit", "next"):
    values = sorted(
      v for client, _ in crew for v in client.seconds.get(name, ())
    )
    figures[name] = {"n": len(values)}
    for percent in (50, 95, 99, 100):
      position = min(
        len(values) - 1, math.ceil(percent / 100 * len(values)) - 1
      )
      figures[name][f"p{percent}_ms"] = round(1000 * values[position], 1)
  requests = sum(figures[name]["n"] for name in ("draft", "submit", "next"))
  figures["cpu_ms_per_request"] = round(1000 * cpu / max(requests, 1), 2)
  middle = memory[len(memory) // 2]
  figures["memory_mib"] = {
    "first": round(memory[0]), "middle": round(middle),
    "last": round(memory[-1]), "most": round(max(memory)),
  }  # fmt: skip
  return figures
