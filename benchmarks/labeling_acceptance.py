"""Labels of simulated people, compared with what they must be.

Labelers of the world rank all prompts at once, and the server is killed on the
way. The store, the export and the dashboard are compared with the labelers' own
records, and with rankings that are written without a server.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from benchmarks import labeling_agreement
from benchmarks.labeling_site import (
  PASSWORD,
  ROOT,
  Failed,
  Server,
  Site,
  Work,
  check,
  join_all,
  make_site,
)
from instructgpt_jax import configs
from instructgpt_jax.data import reading
from instructgpt_jax.labeling import schema, simulated
from instructgpt_jax.labeling import store as store_lib
from instructgpt_jax.runs import files

_TILE = re.compile(
  r'Agreement</span><span class="value">([\d.]+)(?: ± ([\d.]+))? %</span>'
  r'<span class="small muted">([\d,]+) pairs, ([\d,]+) ties'
)


def accept(
  directory: pathlib.Path,
  *,
  labelers: int,
  prompts: int,
  completions: int,
  overlap: int,
  kills: int,
  train: bool = False,
) -> dict[str, Any]:
  """Runs the acceptance test; returns its figures.

  Raises:
    Failed: a check does not hold.
  """
  site = make_site(
    directory,
    labelers=labelers,
    prompts=prompts,
    completions=completions,
    overlap=overlap,
  )
  total = prompts * overlap
  server = Server(site.store)
  done: list[simulated.Acknowledged] = []
  began = time.monotonic()
  try:
    crew = join_all(site, server.port)
    lock = threading.Lock()

    def label(client: simulated.Client, persona: simulated.Persona) -> None:
      for one in simulated.work_items(client, persona, site.world):
        with lock:
          done.append(one)

    work = Work(crew, label)
    for number in range(kills):
      target = total * (number + 1) // (kills + 1)
      while len(done) < target and work.is_running():
        time.sleep(0.005)
      server.kill()
    work.wait()
    seconds = time.monotonic() - began
    tile = read_tile(site, server.port)
  finally:
    server.stop()
  check(server.kills == kills, f"the server was killed {kills} times")
  check_store(site, done, total, overlap)
  check_export(site, done)
  figures = labeling_agreement.check_dashboard(done, tile)
  figures |= labeling_agreement.check_noise(site, done)
  if train:
    check_training(directory)
  retries = sum(client.retries for client, _ in crew)
  return {
    "labels": len(done), "seconds": round(seconds, 1), "retries": retries,
    **figures,
  }  # fmt: skip


def read_tile(site: Site, port: int) -> tuple[float, float, int, int]:
  """Returns what the owner's dashboard shows: percent, error, pairs, ties."""
  client = simulated.Client("127.0.0.1", port)
  client.accept_invitation(site.owner, "owner", PASSWORD + "owner")
  match = _TILE.search(client.page("/dashboard?task=ranking"))
  client.close()
  if match is None:
    raise Failed("the dashboard shows no agreement")
  share, error, pairs, ties = match.groups()
  return (
    float(share),
    float(error or "nan"),
    int(pairs.replace(",", "")),
    int(ties.replace(",", "")),
  )


def check_store(
  site: Site,
  done: Sequence[simulated.Acknowledged],
  total: int,
  overlap: int,
) -> None:
  """Compares the store with what the server has acknowledged."""
  check(len(done) == total, f"{total} labels were acknowledged")
  check(
    len({(d.labeler, d.prompt) for d in done}) == total,
    "no labeler had an item twice",
  )
  store = store_lib.open_store(site.store)
  try:
    with store.read() as connection:
      labels = connection.execute(sa.select(schema.labels)).all()
      history = connection.execute(
        sa.select(sa.func.count()).select_from(schema.label_history)
      ).scalar()
      items = connection.execute(sa.select(schema.items)).all()
      names = {
        row.id: row.name for row in connection.execute(sa.select(schema.users))
      }
  finally:
    store.close()
  check(len(labels) == total, f"the store has {total} labels")
  check(history == total, "each label was submitted once")
  counts = collections.Counter(label.item_id for label in labels)
  check(
    set(counts.values()) == {overlap} and len(counts) == len(items),
    f"each item has exactly {overlap} labels",
  )
  payloads = {item.id: item.payload for item in items}
  by_assignment = {d.assignment: d for d in done}
  for label in labels:
    one = by_assignment[label.assignment_id]
    payload = payloads[label.item_id]
    ranks = dict(zip(one.completions, one.content["ranks"], strict=True))
    check_equal(names[label.user_id], one.labeler, label.assignment_id)
    check_equal(
      label.content["ranks"],
      [ranks[text] for text in payload["completions"]],
      label.assignment_id,
    )
  check(True, "each label is what its labeler submitted")


def check_equal(left: Any, right: Any, what: object) -> None:
  """Raises if two values differ."""
  if left != right:
    raise Failed(f"{what}: {left!r} is not {right!r}")


def direct_records(
  site: Site, done: Sequence[simulated.Acknowledged]
) -> Iterator[dict[str, Any]]:
  """Yields rankings as `pipeline.rankings` writes them, without a server.

  Who labeled what is known from the labelers; their decisions are made again,
  in the order in which the project has the answers.
  """
  who = collections.defaultdict(set)
  for one in done:
    who[one.prompt].add(one.labeler)
  for answer in site.answers:
    for number, persona in enumerate(site.crew, 1):
      if persona.name not in who[answer["prompt"]]:
        continue
      content = persona.rank(
        site.world, answer["prompt"], answer["completions"]
      )
      if len(set(content["ranks"])) > 1:
        yield {
          "prompt": [{"role": "user", "content": answer["prompt"]}],
          "completions": answer["completions"],
          "ranks": content["ranks"],
          "split": answer["split"],
          "labeler_id": str(number),
        }


def check_export(site: Site, done: Sequence[simulated.Acknowledged]) -> None:
  """Compares the export with rankings that are written directly."""
  direct, out = site.directory / "direct.jsonl", site.directory / "out"
  files.write_jsonl_atomic(direct, direct_records(site, done))
  subprocess.run(
    [sys.executable, "-m", "instructgpt_jax.labeling", "export"]
    + [f"--store={site.store}", f"--to={out}", "--keep_personal"],
    check=True,
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
  )
  exported, report = reading.read_rankings(str(out / "rankings.jsonl"))
  expected, _ = reading.read_rankings(str(direct))
  check(not report.unused and not report.skipped, "all of the export is read")

  def values(record: Any) -> dict[str, Any]:
    # The export has grades, the quality that its form asks for.
    return {**dataclasses.asdict(record), "origin": "", "grades": ()}

  check(
    list(map(values, exported)) == list(map(values, expected)),
    f"{len(expected)} exported rankings equal those written directly",
  )


def check_training(directory: pathlib.Path) -> None:
  """Trains a reward model on both files, and compares their weights."""
  documents = directory / "documents.jsonl"
  rows = files.read_text(directory / "answers.jsonl").splitlines()
  files.write_jsonl_atomic(
    documents,
    (
      {"text": " ".join([row["prompt"], *row["completions"]])}
      for row in map(json.loads, rows)
    ),
  )
  base = directory / "base"
  _run_stage(
    "pretrain", base, f"--data.pretraining={documents}", "--pretrain.steps=20"
  )
  weights = []
  for name in ("out/rankings.jsonl", "direct.jsonl"):
    workdir = directory / f"reward_{len(weights)}"
    _run_stage(
      "reward",
      workdir,
      f"--init_from={base}",
      f"--data.comparisons={directory / name}",
      "--reward.normalize=false",
    )
    weights.append(read_model(str(workdir)))
  check(
    weights[0] == weights[1], "the reward model equals the direct one in bits"
  )


def _run_stage(stage: str, workdir: pathlib.Path, *arguments: str) -> None:
  subprocess.run(
    [sys.executable, "-m", f"experiments.{stage}", "--preset=tiny"]
    + [f"--workdir={workdir}", "--run.tensorboard=false", *arguments],
    check=True,
    cwd=ROOT,
  )


def read_model(workdir: str) -> list[tuple[str, bytes]]:
  """Returns the bytes of each array of a stage's model."""
  import jax
  import numpy as np

  from instructgpt_jax.distributed import mesh as mesh_lib
  from instructgpt_jax.training import networks, stage_model

  stage = stage_model.open_stage(workdir)
  params = networks.load_params(stage, mesh_lib.make_mesh(configs.Mesh()))
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  return [(str(path), np.asarray(leaf).tobytes()) for path, leaf in leaves]
