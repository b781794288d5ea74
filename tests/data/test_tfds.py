"""TFDS through array_record, in a process that never sees TensorFlow."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from instructgpt_jax.data import reading
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")

ROOT = pathlib.Path(__file__).parents[2]
QUESTIONS = [f"What is {i} + 1? ü" for i in range(6)]


def _build(directory):
  text = tfds.features.Text()

  class TinyRankings(tfds.core.GeneratorBasedBuilder):
    # Where TFDS would look for checksums of downloads; there are none.
    code_path = None
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain")]

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            "prompt": text,
            "completions": tfds.features.Sequence(text),
            "ranks": tfds.features.Sequence(np.int32),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(QUESTIONS[:4]),
              "validation": self._generate_examples(QUESTIONS[4:])}  # fmt: skip

    def _generate_examples(self, questions):
      for i, q in enumerate(questions):
        yield (
          i,
          {"prompt": q, "completions": ["a", "b", "ü"], "ranks": [2, 1, 2]},
        )

  builder = TinyRankings(
    data_dir=str(directory), file_format="array_record", config="plain"
  )
  builder.download_and_prepare()
  return builder.data_dir


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  directory = tmp_path_factory.mktemp("tfds")
  return directory, _build(directory)


def test_records(built, monkeypatch):
  directory, data_dir = built
  monkeypatch.setenv("TFDS_DATA_DIR", str(directory))
  for name in ("tiny_rankings/plain", data_dir):
    spec = f"tfds:{name}:train"
    actual, report = reading.read_rankings(spec)
    assert sorted(r.turns[0].text for r in actual) == QUESTIONS[:4]
    assert all(r.turns[0] == Turn("user", r.turns[0].text) for r in actual)
    for r in actual:
      assert (r.completions, r.ranks) == (("a", "b", "ü"), (2, 1, 2))
      assert r.origin.startswith(spec)
    assert report.files[0].format == "own rankings"
  prompts, _ = reading.read_prompts("tfds:tiny_rankings/plain:validation")
  assert sorted(p.turns[0].text for p in prompts) == QUESTIONS[4:]


def test_without_tensorflow_from_the_command_line(built):
  directory, _ = built
  code = (
    "import sys; from instructgpt_jax.data.__main__ import main;"
    "status = main(['tfds:tiny_rankings/plain:train']);"
    "print('tensorflow' in sys.modules); sys.exit(status)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env={**os.environ, "TFDS_DATA_DIR": str(directory)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "rankings: 4" in done.stdout and "4 of K=3" in done.stdout
  assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
  "spec, part",
  [
    ("tfds:tiny_rankings/plain:test", "test"),
    ("tfds:tiny_rankings/other:train", "cannot open"),
    ("tfds:no_such_thing:train", "no_such_thing"),
    ("tfds:tiny_rankings", "split is missing"),
  ],
)
def test_errors(built, monkeypatch, spec, part):
  monkeypatch.setenv("TFDS_DATA_DIR", str(built[0]))
  with pytest.raises(UserError) as e:
    reading.read_rankings(spec)
  message = str(e.value)
  assert message.startswith(spec) and part in message
  assert "fix" in message and message.count("\n") <= 2


@pytest.mark.parametrize(
  "name, split",
  [
    ("some/config", "train[:10%]"),
    ("some/config:1.0.0", "train"),
    ("some", "train[5:]+test[:2]"),
  ],
)
def test_names_splits_and_no_download(monkeypatch, name, split):
  asked = {}

  def data_source(name, **options):
    asked.update(options, name=name)
    return [{"prompt": b"p"}]

  monkeypatch.setattr(tfds, "data_source", data_source)
  reading.read_prompts(f"tfds:{name}:{split}")
  assert (asked["name"], asked["split"]) == (name, split)
  assert asked["download"] is False


def test_wrong_kind(built, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(built[0]))
  with pytest.raises(UserError, match="no demonstrations"):
    reading.read_demonstrations("tfds:tiny_rankings/plain:train")
