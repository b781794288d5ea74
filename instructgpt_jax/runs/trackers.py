"""Trackers: where a run's metrics are shown beside `metrics.jsonl`.

A tracker gets every finite metric and every text of a run. TensorBoard writes
files in the workdir. Weights & Biases and MLflow are extras that need their
package: `pip install 'instructgpt-jax[wandb]'` or `[mlflow]`. Both log to their
service (`online`), or to files in the workdir (`offline`).
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import os
import pathlib
import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files

TRACKERS = "trackers.json"  # ids of the run at its trackers
PROJECT = "instructgpt-jax"  # of Weights & Biases and MLflow, by default
_Mode = Literal["online", "offline"]
_INSTALLABLE = ("wandb", "mlflow")


class Tracker(Protocol):
  """What shows the metrics of a run."""

  name: str

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Shows finite numbers of a step."""

  def text(self, step: int, name: str, markdown: str) -> None:
    """Shows a text of a step."""

  def close(self) -> None:
    """Sends what is left, and ends."""


class TrackedRun(NamedTuple):
  """The run that a tracker shows."""

  workdir: pathlib.Path
  name: str  # name of the stage
  resume_step: int  # step that this call resumes from
  sent_step: int  # last step that an earlier call has sent

  @property
  def title(self) -> str:
    """Name of the run in a list of runs."""
    return f"{self.name} {self.workdir.resolve().name}".strip()

  def config(self) -> dict[str, Any]:
    """Returns the recorded config of the run; {} without one."""
    path = self.workdir / files.CONFIG
    return files.read_json(path) if path.exists() else {}

  def saved_id(self, tracker: str) -> str:
    """Returns the id that the run has at a tracker; "" without one."""
    path = self.workdir / TRACKERS
    return files.read_json(path).get(tracker, "") if path.exists() else ""

  def save_id(self, tracker: str, run_id: str) -> None:
    """Saves the id, so that a resumed run continues the same record."""
    path = self.workdir / TRACKERS
    ids = files.read_json(path) if path.exists() else {}
    files.write_json_atomic(path, {**ids, tracker: run_id})


def require_usable(settings: configs.Run) -> None:
  """Refuses trackers that cannot be used, before a run makes anything.

  Args:
    settings: says which trackers the run has.

  Raises:
    UserError: `tracker_not_installed` or `no_tracking_uri`.
  """
  for package in _INSTALLABLE:
    if not getattr(settings, package):
      continue
    if importlib.util.find_spec(package) is None:
      raise UserError(
        f"the package {package} is not installed",
        field=f"run.{package}",
        fix=f"pip install 'instructgpt-jax[{package}]', or leave out the flag",
        code="tracker_not_installed",
      )
  if settings.mlflow == "online" and not os.environ.get("MLFLOW_TRACKING_URI"):
    raise UserError(
      "is online, but MLFLOW_TRACKING_URI names no server",
      field="run.mlflow",
      fix="set MLFLOW_TRACKING_URI, or give --run.mlflow=offline",
      code="no_tracking_uri",
    )


def open_trackers(settings: configs.Run, run: TrackedRun) -> list[Tracker]:
  """Opens the trackers of a run.

  Args:
    settings: says which ones.
    run: the run.

  Raises:
    UserError: `tracker_failed`, or an error of `require_usable`.
  """
  require_usable(settings)
  trackers: list[Tracker] = []
  if settings.tensorboard:
    trackers.append(TensorBoard(run))
  for package, opened in (("wandb", Wandb), ("mlflow", Mlflow)):
    mode = getattr(settings, package)
    if not mode:
      continue
    try:
      trackers.append(opened(run, mode))
    except Exception as error:
      raise UserError(
        f"{package} does not start: {error}",
        field=f"run.{package}",
        fix=f"log in or correct its settings, or give --run.{package}=offline",
        code="tracker_failed",
      ) from error
  return trackers


class TensorBoard:
  """Writes TensorBoard files in the workdir."""

  name = "tensorboard"

  def __init__(self, run: TrackedRun):
    import tensorboardX

    self._workdir = run.workdir
    step = run.resume_step
    with files.disk_errors_as_user_errors(run.workdir):
      self._writer = tensorboardX.SummaryWriter(
        str(run.workdir / "tensorboard"),
        purge_step=step + 1 if step else None,
      )

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes scalars."""
    with files.disk_errors_as_user_errors(self._workdir):
      for name, value in values.items():
        self._writer.add_scalar(name, value, step)

  def text(self, step: int, name: str, markdown: str) -> None:
    """Writes a text."""
    with files.disk_errors_as_user_errors(self._workdir):
      self._writer.add_text(name, markdown, step)

  def close(self) -> None:
    """Closes the files."""
    with files.disk_errors_as_user_errors(self._workdir):
      self._writer.close()


class Wandb:
  """Logs to Weights & Biases; offline, for `wandb sync`, in WORKDIR/wandb.

  A resumed run continues its record. The service ignores steps that it has.
  """

  name = "wandb"

  def __init__(self, run: TrackedRun, mode: _Mode):
    self._wandb = importlib.import_module("wandb")
    run_id = run.saved_id(self.name) or secrets.token_hex(8)
    resume = {"resume": "allow"} if mode == "online" else {}
    self._run = self._wandb.init(
      project=os.environ.get("WANDB_PROJECT", PROJECT),
      name=run.title,
      id=run_id,
      dir=str(run.workdir),
      mode=mode,
      config=run.config(),
      settings=self._wandb.Settings(console="off", silent=True),
      **resume,
    )
    run.save_id(self.name, run_id)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Logs scalars."""
    self._run.log(dict(values), step=step)

  def text(self, step: int, name: str, markdown: str) -> None:
    """Logs a text."""
    page = self._wandb.Html(f"<pre>{html.escape(markdown)}</pre>")
    self._run.log({name: page}, step=step)

  def close(self) -> None:
    """Sends what is left."""
    self._run.finish()


class Mlflow:
  """Logs to MLflow; offline, to WORKDIR/mlflow.db and WORKDIR/mlflow.

  A resumed run continues its record, without the steps that it has.
  """

  name = "mlflow"

  def __init__(self, run: TrackedRun, mode: _Mode):
    self._mlflow = importlib.import_module("mlflow")
    workdir = run.workdir.resolve()
    uri = artifacts = None  # those of the environment
    if mode == "offline":
      uri = f"sqlite:///{workdir / 'mlflow.db'}"
      artifacts = (workdir / "mlflow").as_uri()
    self._client = self._mlflow.MlflowClient(tracking_uri=uri)
    self._sent_step = 0
    self._run_id = run.saved_id(self.name)
    if self._run_id:
      self._sent_step = run.sent_step
      self._client.update_run(self._run_id, status="RUNNING")
      return
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = self._client.get_experiment_by_name(name)
    experiment_id = (
      experiment.experiment_id
      if experiment
      else self._client.create_experiment(name, artifact_location=artifacts)
    )
    created = self._client.create_run(experiment_id, run_name=run.title)
    self._run_id = created.info.run_id
    run.save_id(self.name, self._run_id)
    self._client.log_dict(self._run_id, run.config(), files.CONFIG)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Logs scalars."""
    if step <= self._sent_step:
      return
    milliseconds = int(1000 * time.time())
    metric = self._mlflow.entities.Metric
    self._client.log_batch(
      self._run_id,
      metrics=[
        metric(name, value, milliseconds, step)
        for name, value in values.items()
      ],
    )

  def text(self, step: int, name: str, markdown: str) -> None:
    """Logs a text as a file."""
    self._client.log_text(self._run_id, markdown, f"{name}/{step:08d}.md")

  def close(self) -> None:
    """Marks the record as finished."""
    self._client.set_terminated(self._run_id)
