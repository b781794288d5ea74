"""Scores the samples that OpenAI released of 12 models (InstructGPT).

  python -m experiments.openai_samples --samples=automatic-eval-samples \\
    --output=runs/openai_samples

Computes F1, exact match, BLEU, ROUGE-L, words, toxicity and truthfulness of
each model, with 95 % intervals, and differences from GPT paired by context.
Writes results.json, results.md and alignment_tax.svg. The files are those of
openai/following-instructions-human-feedback. It needs the packages rouge-score
and sacrebleu (extra 'metrics').

Cost: about 10 s on one CPU core. Result: docs/openai_samples.md.
"""

import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instructgpt_jax import streams
from instructgpt_jax.cli import launch
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.evaluation import released_samples, text_metrics
from instructgpt_jax.evaluation.released_samples import SOURCES, Model
from instructgpt_jax.report import study_figures
from instructgpt_jax.report.findings import Figure, Panel, Series
from instructgpt_jax.runs import files

FAMILIES = tuple(released_samples.FAMILIES.values())
SIZES = tuple(released_samples.SIZES.values())
TITLES = {"gpt": "GPT", "sft": "SFT", "ppo": "PPO", "ptx": "PPO-ptx"}
ROLES = {"sft": "sft", "ppo": "ppo", "ptx": "ppo_ptx"}
# The metric of each task that shows the alignment tax.
TAX = {"squadv2": "f1", "drop": "f1", "fr_to_en": "bleu"}
_BASIC = "basic prompt"

# Figures over all contexts of the released files, computed by another program:
# (file, metric, prompt type) → GPT | SFT | PPO | PPO-ptx, at 1.3B/6B/175B.
FULL_FILES = {
  ("squadv2", "f1", "fewshot"): (
    "53.6/56.4/67.9 | 44.7/55.2/64.1 | 45.3/51.2/48.0 | 53.9/61.1/65.8"
  ),
  ("squadv2", "f1", "zeroshot"): (
    "50.4/56.2/56.7 | 37.2/42.3/53.4 | 46.5/48.0/40.7 | 45.0/43.1/53.1"
  ),
  ("drop", "f1", "fewshot"): (
    "39.5/42.3/51.5 | 41.2/43.2/54.3 | 36.3/41.0/45.9 | 39.2/40.9/49.4"
  ),
  ("drop", "f1", "zeroshot"): (
    "26.9/33.0/44.7 | 23.9/21.3/23.3 | 26.6/20.2/22.0 | 23.2/18.8/28.3"
  ),
  ("fr_to_en", "bleu", "fewshot"): (
    "30.7/33.6/34.9 | 25.9/31.9/29.9 | 21.7/29.1/25.7 | 29.0/32.6/33.3"
  ),
  ("fr_to_en", "bleu", "zeroshot"): (
    "29.6/33.1/35.9 | 26.3/31.5/33.3 | 19.0/25.0/22.0 | 25.1/30.2/30.7"
  ),
  ("tldr", "rouge_l", "all"): (
    "11.0/14.3/16.8 | 12.1/13.8/15.9 | 12.5/13.0/12.5 | 11.9/12.7/11.4"
  ),
  ("tldr", "words", "all"): "64/30/24 | 25/33/23 | 27/35/46 | 47/47/44",
  ("real_toxicity", "toxicity", "basic prompt"): (
    ".212/.213/.199 | .186/.196/.189 | .197/.191/.199 | .180/.215/.195"
  ),
  ("real_toxicity", "toxicity", "respectful prompt"): (
    ".171/.204/.195 | .153/.158/.184 | .154/.142/.178 | .171/.198/.173"
  ),
  ("real_toxicity", "toxicity", "biased prompt"): (
    ".256/.227/.244 | .194/.188/.239 | .213/.317/.411 | .260/.461/.329"
  ),
  ("truthful_qa", "true", "QA prompt"): (
    ".31/.18/.24 | .23/.40/.50 | .54/.49/.74 | .24/.44/.63"
  ),
  ("truthful_qa", "true", "QA + instruction"): (
    ".30/.42/.54 | .30/.71/.61 | .56/.93/.86 | .33/.71/.80"
  ),
  ("truthful_qa", "true", "instruction prompt"): (
    ".27/.29/.39 | .51/.55/.81 | .73/.67/.94 | .24/.50/.51"
  ),
  ("truthful_qa", "true_and_informative", "QA prompt"): (
    ".17/.18/.22 | .19/.21/.28 | .50/.48/.73 | .23/.42/.61"
  ),
  ("truthful_qa", "true_and_informative", "QA + instruction"): (
    ".17/.20/.21 | .20/.21/.21 | .45/.16/.34 | .33/.27/.50"
  ),
  ("truthful_qa", "true_and_informative", "instruction prompt"): (
    ".15/.22/.25 | .21/.25/.16 | .72/.58/.54 | .16/.35/.26"
  ),
}


def full_figures() -> dict[tuple[str, str, str], dict[Model, float]]:
  """Returns `FULL_FILES` as numbers by model."""
  return {
    key: {
      Model(family, size): float(value)
      for family, triple in zip(FAMILIES, text.split("|"), strict=True)
      for size, value in zip(SIZES, triple.split("/"), strict=True)
    }
    for key, text in FULL_FILES.items()
  }


def measure(directory: str) -> dict[str, Any]:
  """Scores all released files of a directory.

  Returns:
    What results.json holds: `scores`, `differences` from GPT of the same size
    and, for toxicity, from the `basic` prompt, by file, metric, prompt type and
    model.

  Raises:
    UserError: a file is missing or malformed, or a package is not installed.
  """
  paths = released_samples.find_files(directory)
  results: dict[str, Any] = {
    "files": {},
    "missing": [name for name in SOURCES if name not in paths],
    "not_read": sorted(
      path.name
      for path in pathlib.Path(directory).glob("*.csv*")
      if path not in paths.values()
    ),
    "bleu": text_metrics.bleu_signature(),
    "scores": {},
    "differences": {},
    "from_basic": {},
  }
  for name, path in paths.items():
    samples = released_samples.read(str(path), name)
    results["files"][name] = {
      "file": path.name,
      "samples": len(samples),
      "contexts": len({sample.context for sample in samples}),
    }
    for metric in SOURCES[name].metrics:
      _add_metric(results, samples, name, metric)
  return results


def _add_metric(
  results: dict[str, Any],
  samples: list[released_samples.Sample],
  name: str,
  metric_name: str,
) -> None:
  source = SOURCES[name]
  metric = source.metrics[metric_name]
  by_model = released_samples.score(samples, metric)
  for model, by_prompt in by_model.items():
    base = by_model.get(Model("gpt", model.size), {})
    for prompt_type, cell in by_prompt.items():
      others = {"differences": {} if model.family == "gpt" else base}
      if metric_name == "toxicity" and prompt_type != _BASIC:
        others["from_basic"] = {prompt_type: by_prompt.get(_BASIC, {})}
      intervals = {
        kind: released_samples.estimate_difference(
          source, metric, cell, cells.get(prompt_type, {})
        )
        for kind, cells in others.items()
      }
      intervals["scores"] = released_samples.estimate(source, metric, cell)
      for kind, interval in intervals.items():
        if interval is not None:
          table = results[kind].setdefault(name, {}).setdefault(metric_name, {})
          row = table.setdefault(prompt_type, {})
          row[str(model)] = interval.as_dict()


def to_markdown(results: Mapping[str, Any]) -> str:
  """Returns the tables of results.md."""
  lines = ["# OpenAI's released samples", "", *_description(results)]
  headings = {
    "scores": "{}: {}",
    "differences": "{}: {}, difference from GPT of the same size",
    "from_basic": "{}: {}, difference from the basic prompt",
  }
  for name, source in SOURCES.items():
    for metric_name, metric in source.metrics.items():
      for kind, heading in headings.items():
        table = results[kind].get(name, {}).get(metric_name)
        if table:
          lines += ["", "## " + heading.format(source.title, metric.title), ""]
          lines += _table(table, kind, name, metric_name)
  return "\n".join(lines) + "\n"


def _description(results: Mapping[str, Any]) -> Iterator[str]:
  yield (
    "Each cell has the mean over the contexts, its 95 % interval over their"
    " passages, and in parentheses the figure of the full files, where one is"
    " known."
  )
  yield ""
  for entry in results["files"].values():
    yield (
      f"- {entry['file']}: {entry['samples']} samples,"
      f" {entry['contexts']} contexts"
    )
  for name in results["missing"]:
    yield f"- {name}_samples.csv: missing"
  for name in results["not_read"]:
    yield f"- {name}: not read, because it has no scorer"
  yield f"- BLEU: {results['bleu']}"


def _table(
  table: Mapping[str, Any], kind: str, name: str, metric_name: str
) -> Iterator[str]:
  """Yields the lines of a Markdown table: families down, sizes across."""
  metric, full = SOURCES[name].metrics[metric_name], full_figures()
  yield f"| prompt | model | {' | '.join(SIZES)} |"
  yield "|---|---|" + "---|" * len(SIZES)
  for prompt_type, row in table.items():
    figures = full.get((name, metric_name, prompt_type), {})
    if kind == "from_basic":
      basic = full[name, metric_name, _BASIC]
      figures = {m: value - basic[m] for m, value in figures.items()}
    if kind == "differences":
      figures = {
        m: value - figures[Model("gpt", m.size)] for m, value in figures.items()
      }
    for family in FAMILIES:
      models = [Model(family, size) for size in SIZES]
      if any(str(model) in row for model in models):
        cells = [
          _cell(row.get(str(m)), figures.get(m), metric.digits, kind)
          for m in models
        ]
        yield f"| {prompt_type} | {TITLES[family]} | {' | '.join(cells)} |"


def _cell(
  interval: Mapping[str, Any] | None,
  full: float | None,
  digits: int,
  kind: str,
) -> str:
  if interval is None:
    return "–"
  sign = "" if kind == "scores" else "+"

  def show(value: float) -> str:
    value = round(value, digits) or 0.0  # no "−0.0"
    return f"{value:{sign}.{digits}f}".replace("-", "−")

  text = show(interval["mean"])
  if interval["low"] is not None:
    text += f" [{show(interval['low'])}, {show(interval['high'])}]"
  return text if full is None else f"{text} ({show(full)})"


def draw(results: Mapping[str, Any]) -> str | None:
  """Draws the few-shot differences from GPT at 175B, as SVG text.

  Returns:
    The picture; None if no task of the alignment tax was scored.
  """
  panels = []
  for name, metric in TAX.items():
    cells = results["differences"].get(name, {}).get(metric, {})
    few, zero = cells.get("fewshot", {}), cells.get("zeroshot", {})
    source = SOURCES[name]
    series = [
      Series(
        TITLES[family],
        [
          (label, interval["mean"], interval["low"], interval["high"])
          for label, row in (("few-shot", few), ("zero-shot", zero))
          if (interval := row.get(str(Model(family, SIZES[-1]))))
        ],
        role=role,
        line=False,
      )
      for family, role in ROLES.items()
    ]
    if any(s.points for s in series):
      title = source.metrics[metric].title
      panels.append(
        Panel(
          source.title,
          y_label=f"{title}, difference from GPT",
          x_scale="category",
          lines=[(0.0, "GPT")],
          series=series,
        )
      )
  drawing = study_figures.draw(
    Figure("Alignment tax of OpenAI's 175B models, with 95 % intervals", panels)
  )
  return study_figures.standalone(drawing) if drawing else None


def agreement(results: Mapping[str, Any]) -> tuple[int, int]:
  """Counts the full files' figures that are inside of our intervals.

  Returns:
    How many are inside, and how many there are beside an interval.
  """
  inside = total = 0
  for (name, metric, prompt_type), figures in full_figures().items():
    row = results["scores"].get(name, {}).get(metric, {}).get(prompt_type, {})
    for model, value in figures.items():
      interval = row.get(str(model))
      if interval and interval["low"] is not None:
        half = 0.5 * 10 ** -SOURCES[name].metrics[metric].digits
        low, high = interval["low"] - half, interval["high"] + half
        inside += low <= value <= high
        total += 1
  return inside, total


def _summary(results: Mapping[str, Any]) -> Iterator[str]:
  """Yields the lines that the command prints."""
  for name in results["missing"]:
    yield f"missing: {name}_samples.csv"
  for name in results["not_read"]:
    yield f"not read: {name}"
  for name, metric in TAX.items():
    cells = results["differences"].get(name, {}).get(metric, {})
    for family in ROLES:
      interval = cells.get("fewshot", {}).get(str(Model(family, SIZES[-1])))
      if interval:
        title = f"{SOURCES[name].title} {SOURCES[name].metrics[metric].title}"
        text = _cell(interval, None, 1, "differences")
        yield f"{title}, 175B few-shot, {TITLES[family]} − GPT: {text}"
  inside, total = agreement(results)
  if total:
    share = math.floor(100 * inside / total)
    yield (
      f"{inside} of {total} figures of the full files ({share} %) are inside of"
      " the 95 % intervals"
    )


def write(results: Mapping[str, Any], output: str) -> None:
  """Writes results.json, results.md and the picture."""
  directory = files.make_directory(output)
  files.write_json_atomic(directory / "results.json", results)
  files.write_text_atomic(directory / "results.md", to_markdown(results))
  picture = draw(results)
  if picture:
    files.write_text_atomic(directory / "alignment_tax.svg", picture)


def main(argv: Sequence[str] | None = None) -> int:
  """Reads the command line and returns the exit status; 2 for a user error."""
  streams.accept_all_text()
  parser = CommandParser(
    prog="python -m experiments.openai_samples", description=__doc__
  )
  parser.add_argument(
    "--samples", required=True, help="directory of the released CSV files"
  )
  parser.add_argument(
    "--output", default="runs/openai_samples", help="directory of the results"
  )

  def run() -> None:
    arguments = parser.parse_args(argv)
    results = measure(arguments.samples)
    write(results, arguments.output)
    print("\n".join(_summary(results)))
    print(f"results: {pathlib.Path(arguments.output) / 'results.md'}")

  return launch.run_with_errors(run)


if __name__ == "__main__":
  sys.exit(main())
