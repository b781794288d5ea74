"""Runs on several weighted sources."""

import json
import pathlib

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import packing, reading
from instructgpt_jax.data.batch_source import BatchSpec
from instructgpt_jax.data.records import Document
from instructgpt_jax.errors import UserError
from instructgpt_jax.training import mixed_sources
from tests.training import results
from tests.training.test_bad_input import error_of, replaced
from tests.training.test_processes import finish, start


def write(directory, name, count, text="one two"):
  path = directory / name
  path.write_text(
    "".join(json.dumps({"text": f"{name} {i} {text}"}) + "\n"
            for i in range(count))
  )  # fmt: skip
  return str(path)


def opened(spec):
  source = mixed_sources.open_source(
    configs.Data(pretraining=spec), "data.pretraining"
  )
  return source, reading.read_documents(spec)[0]


def pack(records):
  """Packs each document into a row: as many tokens as it has words."""
  return packing.pack_documents(
    [np.arange(len(r.text.split())) for r in records], 5, eos_id=1, pad_id=0
  )


def test_without_weights_nothing_changes(tmp_path):
  paths = [write(tmp_path, "a.jsonl", 3), write(tmp_path, "b.jsonl", 4)]
  for spec in (paths[0], ",".join(paths), f"{paths[0]}:0.3"):
    source, records = opened(spec)
    rows, mix = source.pack(records, pack)
    assert mix is None
    expected = pack(records)
    for name, value in expected.items():
      np.testing.assert_array_equal(rows[name], value)


def test_rows_are_grouped_by_source(tmp_path):
  a, b = write(tmp_path, "a.jsonl", 3), write(tmp_path, "b.jsonl", 4, "one")
  source, records = opened(f"{b}:1,{a}:3")
  rows, mix = source.pack(records[::-1], pack)
  assert mix.counts == (4, 3) and mix.weights == (1, 3)
  assert rows["segments"].astype(bool).sum(axis=1).tolist() == [4] * 4 + [5] * 3


def test_a_source_without_training_records_is_an_error(tmp_path):
  a, b = write(tmp_path, "a.jsonl", 3), write(tmp_path, "b.jsonl", 4)
  source, records = opened(f"{a}:1,{b}:3")
  with pytest.raises(UserError) as e:
    source.group([r for r in records if "a.jsonl" in r.origin])
  assert (e.value.code, e.value.file, e.value.field) == (
    "empty_source", b, "data.pretraining",
  )  # fmt: skip


def test_all_parts_of_a_long_document_belong_to_its_source(tmp_path):
  a, b = write(tmp_path, "a.jsonl", 1), tmp_path / "b.txt"
  b.write_text("word " * 5)
  source, records = opened(f"{a}:1,{b}:1")
  parts = [Document(text="x", origin=r.origin) for r in records for _ in "ab"]
  assert [len(group) for group in source.group(parts)] == [2, 2]


def test_figures_are_those_of_the_batches(tmp_path, capsys):
  a, b = write(tmp_path, "a.jsonl", 3), write(tmp_path, "b.jsonl", 4, "one")
  source, records = opened(f"{a}:0.7,{b}:0.3")
  rows, mix = source.pack(records, pack)
  spec = BatchSpec(batch_size=5, seed=2, mix=mix)
  use = mixed_sources.use_of_rows(source, rows, mix, 40)
  mixed_sources.report_use(str(tmp_path), spec, use)
  figures = json.loads((tmp_path / "sources.json").read_text())
  first, second = figures["data.pretraining"]
  assert (first["source"], first["weight"]) == (a, 0.7)
  assert (first["rows"], first["used_rows"], second["used_rows"]) == (3, 28, 12)
  assert first["rows_share"] == 0.7 and second["rows_share"] == 0.3
  assert (first["passes"], second["passes"]) == (28 / 3, 3)
  assert (first["tokens"], second["tokens"]) == (15, 16)
  assert first["used_tokens"] == 28 * 5 and second["used_tokens"] == 12 * 4
  loss = 28 * 4 / (28 * 4 + 12 * 3)
  assert first["loss_tokens_share"] == pytest.approx(loss)
  err = capsys.readouterr().err
  assert "70.0% of the rows" in err and f"{b} (weight 0.3)" in err
  plain, _ = opened(a)
  mixed_sources.report_use(
    str(tmp_path / "none"), spec, mixed_sources.Use(plain, None, "rows", 1, {})
  )
  assert not pathlib.Path(tmp_path / "none").exists()


def test_the_step_holds_as_many_records_as_the_shares_say(tmp_path):
  rows = dict(tokens=np.zeros((5, 4)), segments=np.array(
    [[1, 2, 3, 0]] * 2 + [[1, 1, 1, 1]] * 3))  # fmt: skip
  assert mixed_sources.count_records(rows, None, 9) == 9
  mix = mixed_sources.SourceMix((2, 3), (1, 1))
  assert mixed_sources.count_records(rows, mix, 9) == 5 * (3 + 1) / 2


# Whole runs.


def halves(stages, directory, kind):
  """Writes a source as two files: its first records, and its last ones.

  Both have records of each split.
  """
  lines = (stages.data / f"{kind}.jsonl").read_text().splitlines(True)
  paths = [directory / f"{kind}{i}.jsonl" for i in range(2)]
  for i, path in enumerate(paths):
    path.write_text("".join(lines[i::2]))
  return [str(path) for path in paths]


def weighted(paths, *weights):
  parts = zip(paths, weights, strict=True)
  return ",".join(f"{path}:{weight}" for path, weight in parts)


def run_weighted(name, kinds, stages, directory):
  """Runs a stage on sources of the weights 3 and 1; returns its flags."""
  paths = {kind: halves(stages, directory, kind) for kind in kinds}
  specs = {kind: weighted(p, 3, 1) for kind, p in paths.items()}
  flags = replaced(stages.flags(name), **specs)
  done = stages.run(name, *flags, f"--workdir={directory / 'straight'}")
  assert done.status == 0, done.err
  figures = json.loads((directory / "straight" / "sources.json").read_text())
  assert set(figures) == {f"data.{kind}" for kind in kinds}
  for kind in kinds:
    unit = {"prompts": "prompts", "comparisons": "rankings"}.get(kind, "rows")
    first, _ = figures[f"data.{kind}"]
    # To within a record for each source.
    used = first[f"used_{unit}"]
    assert abs(first[f"{unit}_share"] - 0.75) <= 2 / used
    assert f"{paths[kind][0]} (weight 3)" in done.err
  return flags, paths


@pytest.mark.parametrize(
  ("name", "kinds"),
  [("reward", ("comparisons",)), ("ppo_ptx", ("prompts", "pretraining"))],
)
def test_stages_use_weighted_sources(name, kinds, stages, tmp_path):
  run_weighted(name, kinds, stages, tmp_path)


def test_a_weighted_run_resumes_bit_for_bit(stages, tmp_path):
  kinds = ("demonstrations", "pretraining")
  flags, paths = run_weighted("policy_init", kinds, stages, tmp_path)
  run = f"--workdir={tmp_path / 'run'}"
  stopped = stages.server.run(
    "tests.training.at_step", "3", "sigterm", "policy_init", *flags, run
  )
  assert stopped.status == 0, stopped.err
  other = replaced(flags, pretraining=weighted(paths["pretraining"], 2, 1))
  error = error_of(stages.run("policy_init", *other, run))
  assert error.field == "data.pretraining"
  done = stages.run("policy_init", *flags, run)
  assert done.status == 0, done.err
  results.assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_the_validation_loss_of_each_part(stages, tmp_path):
  flags, paths = run_weighted("sft", ("demonstrations",), stages, tmp_path)
  del flags
  names = {
    f"valid_loss/{pathlib.Path(p).name}" for p in paths["demonstrations"]
  }
  evaluations = [
    m for m in results.metrics(tmp_path / "straight") if "valid_loss" in m
  ]
  assert evaluations
  for metrics in evaluations:
    assert names == {name for name in metrics if name.startswith("valid_loss/")}
    parts = [metrics[name] for name in names]
    assert min(parts) < metrics["valid_loss"] < max(parts)


def test_parts_of_one_name_are_told_apart(tmp_path):
  paths = [tmp_path / d / "x.jsonl" for d in "ab"]
  source = mixed_sources.MixedSource(
    "data.pretraining",
    [reading.WeightedSource(str(p), 1.0, (str(p),)) for p in paths],
  )
  records = [Document(text="x", origin=f"{p}:1") for p in paths]
  packed = source.pack_validation(records, lambda part: {"tokens": part})
  assert [*packed] == [str(p) for p in paths]


def test_processes_read_their_parts_of_weighted_sources(stages, tmp_path):
  paths = halves(stages, tmp_path, "pretraining")
  flags = replaced(stages.flags("pretrain"), pretraining=weighted(paths, 3, 1))
  done = stages.run("pretrain", *flags, f"--workdir={tmp_path / 'one'}")
  assert done.status == 0, done.err
  several = [*flags, "--mesh.data=2", f"--workdir={tmp_path / 'two'}"]
  finish(start(stages.server, 2, "experiments.pretrain", *several))
  one, two = (results.metrics(tmp_path / n) for n in ("one", "two"))
  assert [m["step"] for m in one] == [m["step"] for m in two]
  for a, b in zip(one, two, strict=True):
    for key in ("loss", "valid_loss"):
      if key in a:
        assert b[key] == pytest.approx(a[key], rel=1e-4)
  sources = [
    (tmp_path / n / "sources.json").read_text() for n in ("one", "two")
  ]
  assert sources[0] == sources[1]
