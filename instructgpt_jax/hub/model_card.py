"""Writes the model card of an export from what the run recorded.

Paths of the computer do not appear: of an absolute path the last part stays.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from instructgpt_jax import __version__, configs, gguf_header
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.cli import flags
from instructgpt_jax.data import encoding, records
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.training import fingerprint, stage_model

CARD = "README.md"
TRAINING = "training_config.json"
_DEFAULTS: Mapping[str, type[configs.Experiment]] = {
  "pretrain": configs.PretrainExperiment,
  "sft": configs.SftExperiment,
  "policy_init": configs.SftExperiment,
  "reward": configs.RewardExperiment,
  "ppo": configs.PpoExperiment,
  "ppo_ptx": configs.PpoExperiment,
}
# Sections that do not change the result.
_UNRELATED = ("run.", "mesh.", "processes.", "data.explicit")
# The directories of an absolute path.
_ABSOLUTE = re.compile(r"(?<![\w.])/(?:[^,:/\s]+/)+")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SOURCE = "source"  # name of an imported model, in complete.json
_REPORT = "report.json"
_GREEDY = "greedy"  # a report's metrics at temperature 0


class _Run(NamedTuple):
  """What a workdir records of its run.

  Attributes:
    experiment: its name; "" if the workdir has no config.
    config: nested values of its config.
    summary: content of complete.json.
  """

  experiment: str
  config: dict[str, Any]
  summary: dict[str, Any]


def build_files(
  stage: stage_model.Stage, name: str, *, adapters: bool = False
) -> dict[str, bytes]:
  """Returns the model card, and the run's config if there is one.

  Args:
    stage: the model that is exported.
    name: its name, the title of the card.
    adapters: whether only LoRA adapters are exported.
  """
  run = _read_run(pathlib.Path(stage.path))
  parts = [
    _header(stage, run, adapters),
    f"# {name}\n",
    _introduction(stage, run, adapters),
    _use(stage, adapters),
    _data(stage.path),
    _training(run),
    _results(stage.path, run),
    _limits(stage, run),
  ]
  result = {CARD: "\n".join(part for part in parts if part).encode()}
  if run.experiment:
    values = {
      "experiment": run.experiment,
      "config": _without_paths(run.config),
    }
    result[TRAINING] = (json.dumps(values, indent=2) + "\n").encode()
  return result


def _read_run(workdir: pathlib.Path) -> _Run:
  if not workdir.is_dir():
    return _Run("", {}, {})
  summary = files.read_complete(workdir) or {}
  config_path = workdir / files.CONFIG
  if not config_path.exists() or not summary:
    return _Run("", {}, summary)
  value = files.read_json(config_path)
  if not isinstance(value, dict) or "experiment" not in value:
    return _Run("", {}, summary)
  return _Run(str(value["experiment"]), dict(value["config"]), summary)


def _base_name(stage: stage_model.Stage, run: _Run) -> str:
  """Returns the name of the pretrained model at the beginning; "" for none."""
  if stage.origin is None:
    return ""
  name = str(stage.origin.config.get("_name_or_path", ""))
  if _HUB_NAME.fullmatch(name) and not pathlib.Path(name).exists():
    return name
  path, names = pathlib.Path(stage.path), list[str]()
  while (name := str(_read_run(path).config.get("init_from", ""))) and (
    name not in names
  ):
    names.append(name)
    # A workdir that was moved has its neighbours beside it.
    beside = path.absolute().parent / pathlib.PurePath(name).name
    path = next((p for p in (pathlib.Path(name), beside) if p.exists()), beside)
  name = str(_read_run(path).summary.get(SOURCE, path.absolute().name))
  return name.removesuffix(gguf_header.SUFFIX)


def _header(stage: stage_model.Stage, run: _Run, adapters: bool) -> str:
  """Returns the metadata that the Hugging Face hub reads."""
  is_scalar = stage.kind == stage_model.SCALAR
  lines = ["---"]
  if base := _base_name(stage, run):
    lines.append(f"base_model: {json.dumps(base)}")
  lines.append(f"library_name: {'peft' if adapters else 'transformers'}")
  task = "text-classification" if is_scalar else "text-generation"
  lines.append(f"pipeline_tag: {task}")
  tags = ["instructgpt_jax", run.experiment.replace("_", "-")]
  if is_scalar:
    tags.append("reward-model")
  if adapters:
    tags.append("lora")
  lines += ["tags:", *(f"- {tag}" for tag in tags if tag), "---\n"]
  return "\n".join(lines)


def _introduction(stage: stage_model.Stage, run: _Run, adapters: bool) -> str:
  kind = (
    "reward model" if stage.kind == stage_model.SCALAR else "language model"
  )
  base = _base_name(stage, run)
  if run.experiment:
    start = f"trained from {base}" if base else "trained from scratch"
  else:
    start = f"converted from {base}" if base else "written"
  c = stage.model_config
  text = f"A {kind}, {start} with instructgpt_jax {__version__}"
  if run.experiment:
    text += f" (stage `{run.experiment}`)"
  text += (
    f". Layers: {c.num_layers}. Width: {c.d_model}. Context: {c.max_seq_len}"
    " tokens."
  )
  if adapters:
    text += " This directory has its LoRA adapters only."
  return text + "\n"


def _use(stage: stage_model.Stage, adapters: bool) -> str:
  """Describes how the model is loaded, and how prompts are written."""
  lines = ["## Use\n"]
  if not adapters:
    auto = "AutoModelForCausalLM"
    if stage.kind == stage_model.SCALAR:
      auto = "AutoModelForSequenceClassification"
    lines += [
      "```python",
      f"from transformers import AutoTokenizer, {auto}\n",
      'tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")',
      f'model = {auto}.from_pretrained("DIRECTORY")',
      "```\n",
    ]
  if _has_template(stage):
    lines.append("Prompts are written by the tokenizer's chat template.\n")
  elif stage.has_prompts:
    text = records.prompt_text((Turn("user", "How are you?"),), stage.data)
    lines += ["A prompt is written as", "", "```", text, "```\n"]
  if stage.kind == stage_model.SCALAR and stage.has_prompts and not adapters:
    lines.append(
      "The score is that of the token that ends the reply, with which the"
      " chat template ends a conversation.\n"
    )
  return "\n".join(lines)


def _has_template(stage: stage_model.Stage) -> bool:
  try:
    return encoding.uses_template(stage.tokenizer, stage.data)
  except UserError:
    return True  # One that this package cannot use, but others can.


def _data(path: str) -> str:
  """Describes the sources of a run, from the newest checkpoint."""
  values = checkpoints.newest_values(path)
  sources = (values.get(fingerprint.KEY) or {}).get("sources") or {}
  rows = []
  for field, source in sorted(sources.items()):
    names = ", ".join(
      f"{name} ({size:,} bytes)" for name, size in source["files"]
    )
    counts = ", ".join(
      f"{count:,} {split}" for split, count in source["records"].items()
    )
    rows.append([f"`{field}`", names or "–", counts or "–", source["hash"]])
  if not rows:
    return "## Data\n\nThe workdir has no record of the data.\n"
  head = ["source", "files", "records", "fingerprint"]
  return f"## Data\n\n{_table(head, rows)}"


def _training(run: _Run) -> str:
  """Returns the command, and the settings that are not the defaults."""
  if not run.experiment:
    return ""
  lines = [
    "## Training\n",
    f"`{TRAINING}` has all settings:\n",
    f"    python -m experiments.{run.experiment} --config={TRAINING} \\",
    "      --workdir=DIR\n",
    "Paths of the original computer are shortened to their last part there.\n",
  ]
  rows = [
    [f"`{name}`", _text(value), _text(default)]
    for name, value, default in _differences(run)
  ]
  if rows:
    lines += [
      "Settings that differ from their defaults:\n",
      _table(["setting", "value", "default"], rows),
    ]
  return "\n".join(lines)


def _differences(run: _Run) -> Iterator[tuple[str, Any, Any]]:
  """Yields (name, value, default) of settings with another value."""
  if run.experiment not in _DEFAULTS:
    return
  default = _DEFAULTS[run.experiment]()
  config = flags.config_from_dict(default, run.config, file=files.CONFIG)
  for (name, value, _), (_, other, _) in zip(
    flags.leaves(config), flags.leaves(default), strict=True
  ):
    if value != other and not name.startswith(_UNRELATED):
      yield name, _without_paths(value), other


def _results(path: str, run: _Run) -> str:
  """Returns the metrics of the run, and of the report beside it."""
  lines = []
  rows = list(_metrics(run.summary))
  if rows:
    lines += ["At the end of training:\n", _table(_METRICS_HEAD, rows)]
  workdir = pathlib.Path(path).absolute()
  report = workdir.parent / _REPORT
  if report.is_file():
    values = files.read_json(report)
    models = values.get("models", {}) if isinstance(values, dict) else {}
    model = models.get(workdir.name) or {}
    rows = list(_metrics({k: v for k, v in model.items() if k != _GREEDY}))
    if rows:
      judge = _without_paths(str(values.get("judge", "")))
      lines += [f"By the pipeline's report (judge: {judge}):\n"]
      lines += [_table(_METRICS_HEAD, rows)]
  if not lines:
    return ""
  return "\n".join(["## Results\n", *lines])


_METRICS_HEAD = ["metric", "value", "95 % interval", "units"]


def _metrics(
  values: Mapping[str, Any], prefix: str = ""
) -> Iterator[list[str]]:
  """Yields the rows of a table of metrics, which may be nested."""
  for name, value in values.items():
    if isinstance(value, Mapping) and "mean" in value:
      if value["mean"] is None:
        continue
      low, high = value.get("low"), value.get("high")
      interval = "–" if low is None else f"[{low:.4g}, {high:.4g}]"
      units = str(value.get("units", "–"))
      yield [f"{prefix}{name}", f"{value['mean']:.4g}", interval, units]
    elif isinstance(value, Mapping):
      yield from _metrics(value, f"{prefix}{name}.")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
      yield [f"{prefix}{name}", f"{value:.4g}", "–", "–"]


def _limits(stage: stage_model.Stage, run: _Run) -> str:
  data = stage.data
  lines = ["## Limits\n"]
  if stage.has_prompts and run.experiment:
    lines.append(
      f"- Trained on prompts of at most {data.max_prompt_tokens} tokens and"
      f" responses of at most {data.max_response_tokens}."
    )
  if stage.kind == stage_model.SCALAR:
    lines.append(
      "- Scores compare responses to one prompt. A policy that is trained"
      " against them can exploit their errors."
    )
  else:
    lines.append("- It can write statements that are false or harmful.")
  lines += [
    "- Nothing is known of other data than the above.",
    "- The licence follows from the base model and the data; it is not recorded"
    " here.\n",
  ]
  return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"

  return (
    "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)]) + "\n"
  )


def _text(value: Any) -> str:
  """Returns a setting as one line."""
  if value is None:
    return "none"
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, (int, float)):
    return f"{value:.6g}" if isinstance(value, float) else str(value)
  if isinstance(value, (list, tuple)):
    return ", ".join(map(_text, value))
  return f"`{json.dumps(value, ensure_ascii=False)}`"


def _without_paths(value: Any) -> Any:
  """Shortens absolute paths to their last part, also in nested values."""
  if isinstance(value, str):
    return _ABSOLUTE.sub("", value)
  if isinstance(value, Mapping):
    return {key: _without_paths(v) for key, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_without_paths(v) for v in value]
  return value
