"""Metrics and texts reach each tracker, and trackers that fail do no harm."""

import importlib.machinery
import json
import pathlib
import sys
import time
import types

import pytest

from instructgpt_jax import configs
from instructgpt_jax.cli import launch
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import metrics, trackers

OFFLINE = configs.Run(tensorboard=False, wandb="offline")


class FakeWandb(types.ModuleType):
  """Records what is logged."""

  def __init__(self):
    super().__init__("wandb")
    self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    self.inits, self.logged, self.finished = [], [], 0
    self.failure = None

  def init(self, **options):
    if self.failure == "init":
      raise ValueError("no API key")
    self.inits.append(options)
    return self

  def Settings(self, **options):
    return options

  def Html(self, text):
    return text

  def log(self, values, step):
    if self.failure == step:
      raise ConnectionError("the service is away")
    self.logged.append((step, values))

  def finish(self):
    self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
  fake = FakeWandb()
  monkeypatch.setitem(sys.modules, "wandb", fake)
  monkeypatch.delenv("WANDB_PROJECT", raising=False)
  return fake


def test_a_tracker_gets_finite_metrics_and_texts(wandb, tmp_path):
  (tmp_path / "config.json").write_text('{"experiment": "sft"}')
  with metrics.MetricWriter(tmp_path, OFFLINE, name="sft") as writer:
    writer.write(1, {"loss": 0.5, "bad": float("nan")})
    writer.write_text(1, "samples", "|<b>|")
    writer.write(2, {"loss": 0.25})
  assert wandb.logged == [
    (1, {"loss": 0.5}),
    (1, {"samples": "<pre>|&lt;b&gt;|</pre>"}),
    (2, {"loss": 0.25}),
  ]
  assert wandb.finished == 1
  (options,) = wandb.inits
  assert options["project"] == "instructgpt-jax"
  assert options["name"] == f"sft {tmp_path.name}"
  assert (options["mode"], options["dir"]) == ("offline", str(tmp_path))
  assert options["config"] == {"experiment": "sft"}
  # The metrics are complete without the tracker.
  assert [row["step"] for row in metrics.read_metrics(tmp_path)] == [1, 2]


def test_a_resumed_run_continues_its_record(wandb, tmp_path):
  online = configs.Run(tensorboard=False, wandb="online")
  for step in (1, 2):
    with metrics.MetricWriter(tmp_path, online, resume_step=step - 1) as writer:
      writer.write(step, {"loss": 0.5})
  first, second = wandb.inits
  assert first["id"] == second["id"] and second["resume"] == "allow"
  with metrics.MetricWriter(tmp_path / "other", online):
    pass
  assert wandb.inits[2]["id"] != first["id"]


def test_a_tracker_that_fails_is_left_out(wandb, tmp_path, capsys):
  wandb.failure = 2
  with metrics.MetricWriter(tmp_path, OFFLINE) as writer:
    for step in (1, 2, 3):
      writer.write(step, {"loss": 0.5})
  assert [step for step, _ in wandb.logged] == [1]
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("warning: wandb failed")
  assert [row["step"] for row in metrics.read_metrics(tmp_path)] == [1, 2, 3]


def test_a_tracker_that_does_not_start_is_an_error(wandb, tmp_path):
  wandb.failure = "init"
  with pytest.raises(UserError) as error:
    metrics.MetricWriter(tmp_path, OFFLINE)
  assert (error.value.code, error.value.field) == (
    "tracker_failed",
    "run.wandb",
  )


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_one_error_before_the_run(
  package, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
  settings = configs.Run(**{package: "offline"})
  with pytest.raises(UserError) as error:
    trackers.require_usable(settings)
  assert (error.value.code, error.value.field) == (
    "tracker_not_installed",
    f"run.{package}",
  )
  workdir = tmp_path / "run"
  status = launch.main(
    "sft",
    presets.sft,
    pytest.fail,
    "Doc.",
    argv=[f"--workdir={workdir}", f"--run.{package}=offline"],
    default_preset="tiny",
    presets=presets.NAMES,
  )
  assert status == 2 and not workdir.exists()
  assert f"[run.{package}]" in capsys.readouterr().err


def test_mlflow_online_needs_a_server(monkeypatch):
  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: name)
  with pytest.raises(UserError) as error:
    trackers.require_usable(configs.Run(mlflow="online"))
  assert error.value.code == "no_tracking_uri"
  monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
  trackers.require_usable(configs.Run(mlflow="online"))


def test_tensorboard_has_the_texts(tmp_path):
  with metrics.MetricWriter(tmp_path, configs.Run()) as writer:
    writer.write_text(1, "samples", "|what a model said|")
  (path,) = pathlib.Path(tmp_path, "tensorboard").iterdir()
  assert b"what a model said" in path.read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_offline_has_each_step_once(tmp_path):
  mlflow = pytest.importorskip("mlflow")
  pytest.importorskip("sqlalchemy")
  settings = configs.Run(tensorboard=False, mlflow="offline")
  with metrics.MetricWriter(tmp_path, settings, name="sft") as writer:
    for step in (1, 2, 3):
      writer.write(step, {"loss": step / 4})
    writer.write_text(3, "samples", "|a|")
  with metrics.MetricWriter(tmp_path, settings, resume_step=1) as writer:
    for step in (2, 3, 4):
      writer.write(step, {"loss": step / 4})
  uri = f"sqlite:///{tmp_path.resolve() / 'mlflow.db'}"
  client = mlflow.MlflowClient(tracking_uri=uri)
  run_id = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
  history = client.get_metric_history(run_id, "loss")
  assert sorted((m.step, m.value) for m in history) == [
    (1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0),
  ]  # fmt: skip
  assert client.get_run(run_id).info.status == "FINISHED"
  texts = list((tmp_path / "mlflow").rglob("*.md"))
  assert [t.read_text() for t in texts] == ["|a|"]


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_writes_into_the_workdir(tmp_path):
  pytest.importorskip("wandb")
  with metrics.MetricWriter(tmp_path, OFFLINE, name="sft") as writer:
    writer.write(1, {"some_loss": 0.5})
  (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
  deadline = time.monotonic() + 20
  while time.monotonic() < deadline and b"some_loss" not in path.read_bytes():
    time.sleep(0.1)  # its own process writes the file
  assert b"some_loss" in path.read_bytes()
