"""The steps of `experiments.real`, each a command of its own.

The pipeline of the embedded world does not fit here: nobody ranks the model's
own answers. A program does, for instructions whose fulfilment it can check; the
answers of demonstrations rank above the model's own; and people's rankings of
other models' answers are added.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from instructgpt_jax import configs
from instructgpt_jax.data import reading
from instructgpt_jax.data.reading import specs
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.tasks import registry
from instructgpt_jax.pipeline import judge_split
from instructgpt_jax.real import example_prompts, references
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import log_line
from instructgpt_jax.training import stage_model

TASKS = tuple(
  name
  for name, task in registry.TASKS.items()
  if task.expected and not task.is_judged
)
SECONDS = "seconds.json"
GREEDY, SAMPLED = "greedy", "sampled"
TEMPERATURES = {GREEDY: 0, SAMPLED: 1}

# Answers to each training instruction: few of them are fulfilled (6 %).
_BASE_ANSWERS, _POLICY_ANSWERS = 2, 4
_REFERENCES, _REFERENCE_ANSWERS = 480, 2
# Longer dialogues cost minutes of a reward model, and are few.
_RANKED = {"max_prompt_tokens": 192, "max_response_tokens": 96}
# PPO's prompts are instructions and questions; an iteration's cost grows with
# these.
_PROMPTED = {"max_prompt_tokens": 80, "max_response_tokens": 64}
_SPLITS = {"valid_fraction": 0.1, "test_fraction": 0.2, "max_dropped": 0.9}
_INSTRUCTIONS_WEIGHT = 0.6  # of PPO's prompts
_INSTRUCTION_PROMPTS = "instruction_prompts.jsonl"
_BATCH_SIZE = 96
_ROUTES: Mapping[str, tuple[str, ...]] = {
  "sft": ("policy_init", "sft"),
  "reward": ("reward", "judge"),
  "ppo": ("ppo", "ppo_ptx"),
  "evaluation": ("evaluate",),
  "measure": ("evaluate",),
}


class Step(NamedTuple):
  """One step of the run.

  `output` exists once it is done: a file, or a stage's complete.json.
  """

  name: str
  output: pathlib.Path
  command: Sequence[str] = ()
  call: Callable[[], None] | None = None


def parse_seeds(text: str) -> list[int]:
  """Parses a comma list of different seeds.

  Raises:
    UserError: `bad_seeds`.
  """
  values = [part.strip() for part in text.split(",")]
  if not all(v.isdecimal() for v in values) or len(set(values)) < len(values):
    raise UserError(
      f"{text!r} is no list of different seeds",
      field="--seeds",
      fix="give whole numbers, such as 0,1",
      code="bad_seeds",
    )
  return [int(value) for value in values]


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run reads and where it writes.

  Attributes:
    workdir: directory of all stages.
    sources: name → path, of the user's data and tasks.
    seeds: seeds of PPO and PPO-ptx.
    flags: flags of the stages, --SECTION.NAME=VALUE.
  """

  workdir: str
  sources: Mapping[str, str]
  seeds: Sequence[int]
  flags: Sequence[str] = ()

  def path(self, name: str) -> pathlib.Path:
    """Returns the path of a stage or file in the workdir."""
    return pathlib.Path(self.workdir) / name

  @property
  def policies(self) -> list[str]:
    """Stages that PPO has trained."""
    return [f"{name}_{s}" for s in self.seeds for name in ("ppo", "ppo_ptx")]

  @property
  def models(self) -> list[str]:
    """All stages that answer prompts."""
    return ["base", "policy_init", "sft", *self.policies]

  def steps(self) -> list[Step]:
    """Returns all steps in their order.

    Raises:
      UserError: `bad_flag`, no stage has a flag.
    """
    self._check_flags()
    return [
      *self._instructions(),
      self._supervised("policy_init"),
      *self._program_rankings(),
      *self._reference_rankings(),
      self._split_rankings(),
      *(self._reward(name) for name in ("reward", "judge")),
      self._supervised("sft"),
      *(self._ppo(name, seed) for seed in self.seeds for name in ("ppo",
                                                                  "ppo_ptx")),
      *(step for model in self.models for step in self._evaluation(model)),
    ]  # fmt: skip

  def _check_flags(self) -> None:
    for flag in self.flags:
      section = flag.removeprefix("--").split(".")[0]
      if section not in _ROUTES:
        raise UserError(
          f"no stage has a flag {flag}",
          fix=configs.nearest(section, _ROUTES)
          or f"flags begin with --{', --'.join(_ROUTES)}",
          code="bad_flag",
        )

  def _flags_of(self, stage: str) -> list[str]:
    return [
      flag
      for flag in self.flags
      if stage in _ROUTES[flag.removeprefix("--").split(".")[0]]
    ]

  def _stage(self, name: str, experiment: str, start: str, *flags: str) -> Step:
    command = [
      f"experiments.{experiment}",
      f"--workdir={self.path(name)}",
      f"--init_from={self.path(start)}",
      *flags,
    ]
    return Step(
      name,
      self.path(name) / files.COMPLETE,
      command + self._flags_of(experiment),
    )

  def _source(self, name: str) -> str:
    return f"--data.{name}={self.sources[name]}"

  def _instructions(self) -> list[Step]:
    directory = self.path("instructions")
    return [
      Step(
        "instructions",
        directory / "test.jsonl",
        ["instructgpt_jax.instructions", "write", f"--to={directory}"],
      ),
      # Under a name that says nothing of a split: beside a file train.jsonl,
      # all prompts of a user's test.jsonl would be held out.
      Step(
        "instruction_prompts",
        self.path(_INSTRUCTION_PROMPTS),
        call=lambda: files.write_text_atomic(
          self.path(_INSTRUCTION_PROMPTS),
          files.read_text(directory / "train.jsonl"),
        ),
      ),
      Step(
        "examples",
        self.path("examples.jsonl"),
        call=lambda: example_prompts.write(self.path("examples.jsonl")),
      ),
    ]

  def _supervised(self, name: str) -> Step:
    flags = [self._source("demonstrations")]
    if name == "policy_init":
      flags.append(self._source("pretraining"))
    else:
      flags.append("--sft.select_by=last")
    return self._stage(name, name, "base", *flags, "--sft.epochs=1")

  def _answers(
    self,
    model: str,
    prompts: pathlib.Path,
    name: str,
    *,
    temperature: int = 1,
    seed: int = 0,
  ) -> Step:
    output = self.path("answers") / f"{model}_{name}.jsonl"
    command = [
      "instructgpt_jax.chat",
      f"--checkpoint={self.path(model)}",
      f"--prompts={prompts}",
      f"--output={output}",
      "--max_tokens=64",
      f"--temperature={temperature}",
      f"--seed={seed}",
      f"--batch_size={_BATCH_SIZE}",
    ]
    return Step(f"answers {output.stem}", output, command)

  def _program_rankings(self) -> list[Step]:
    items = self.path("instructions") / "train.jsonl"
    answers = [
      self._answers(model, items, f"train_{seed}", seed=seed)
      for model, count in (
        ("base", _BASE_ANSWERS),
        ("policy_init", _POLICY_ANSWERS),
      )
      for seed in range(count)
    ]
    output = self._ranked("program")
    rank = [
      "instructgpt_jax.instructions",
      "rank",
      f"--items={items}",
      f"--to={output}",
      *(str(step.output) for step in answers),
    ]
    return [*answers, Step("rank", output, rank)]

  def _reference_rankings(self) -> list[Step]:
    prompts = self.path("references.jsonl")
    answers = [
      self._answers("policy_init", prompts, f"references_{seed}", seed=seed)
      for seed in range(_REFERENCE_ANSWERS)
    ]
    output = self._ranked("references")
    return [
      Step(
        "references",
        prompts,
        call=lambda: references.draw(
          self.sources["demonstrations"], prompts, _REFERENCES
        ),
      ),
      *answers,
      Step(
        "rank references",
        output,
        call=lambda: references.rank(
          prompts, [step.output for step in answers], output
        ),
      ),
    ]

  def _split_rankings(self) -> Step:
    def split() -> None:
      comparisons = specs.join(
        [
          *specs.parse(self.sources["comparisons"]),
          specs.Part(str(self._ranked("references"))),
        ]
      )
      data = configs.Data(comparisons=comparisons, **_RANKED, **_SPLITS)
      judge_split.write(
        configs.PipelineExperiment(data=data),
        str(self.path("rankings")),
        stage_model.open_stage(str(self.path("policy_init"))).tokenizer,
      )

    path = self._ranked(judge_split.JUDGE)
    return Step("split", path, call=split)

  def _ranked(self, name: str) -> pathlib.Path:
    """Returns the path of a file of rankings."""
    return self.path("rankings") / f"{name}.jsonl"

  def _reward(self, name: str) -> Step:
    paths = [specs.Part(str(self._ranked(name)))]
    if name == "reward":
      paths.append(specs.Part(str(self._ranked("program"))))
    return self._stage(
      name,
      "reward",
      "policy_init",
      f"--data.comparisons={specs.join(paths)}",
      self._source("demonstrations"),  # their mean reward becomes 0
      "--reward.batch_size=8",
      "--optimizer.learning_rate=5e-5",
      *_data_flags(_RANKED),
    )

  def _ppo(self, name: str, seed: int) -> Step:
    prompts = _mix(
      self.sources["prompts"], str(self.path(_INSTRUCTION_PROMPTS))
    )
    flags = [
      f"--seed={seed}",
      f"--ppo.reward_model={self.path('reward')}",
      f"--data.prompts={prompts}",
      *_data_flags(_PROMPTED),
      "--ppo.episodes=512",
      "--ppo.minibatch=16",
      "--ppo.samples_every=5",
      "--ppo.sample_prompts=8",
      "--ppo.warmup_iterations=1",
      "--ppo.kl_coef=0.1",
      "--optimizer.learning_rate=5e-5",
      "--value_optimizer.learning_rate=5e-5",
    ]
    if name == "ppo_ptx":
      flags += [self._source("pretraining"), "--ppo.ptx_sequence=128"]
    return self._stage(f"{name}_{seed}", name, "policy_init", *flags)

  def _evaluation(self, model: str) -> list[Step]:
    items = self.path("instructions") / "test.jsonl"
    tasks = ",".join(
      f"{name}={self.sources[name]}" for name in TASKS if name in self.sources
    )
    measure = self._stage(
      f"measured/{model}",
      "evaluate",
      model,
      f"--measure.start={self.path('policy_init')}",
      f"--measure.reward_model={self.path('reward')}",
      f"--measure.judge={self.path('judge')}",
      *([f"--measure.tasks={tasks}"] if tasks else []),
      "--measure.rows=64",
      "--measure.sequence=256",
      "--evaluation.samples=1",
      "--evaluation.prompts=200",
      self._source("prompts"),
      self._source("pretraining"),
      *_data_flags(_PROMPTED),
    )
    return [
      *(
        self._answers(model, items, name, temperature=temperature)
        for name, temperature in TEMPERATURES.items()
      ),
      self._answers(
        model, self.path("examples.jsonl"), "examples", temperature=0
      ),
      measure,
    ]


def _mix(prompts: str, instructions: str) -> str:
  """Returns the user's prompts and the instructions, with weights."""
  parts = specs.parse(prompts)
  weights = [1.0 if part.weight is None else part.weight for part in parts]
  scale = (1 - _INSTRUCTIONS_WEIGHT) / sum(weights)
  named = [
    specs.Part(part.name, float(f"{weight * scale:.4g}"))
    for part, weight in zip(parts, weights, strict=True)
  ]
  named.append(specs.Part(instructions, _INSTRUCTIONS_WEIGHT))
  return specs.join(named)


def _data_flags(limits: Mapping[str, int]) -> list[str]:
  return [f"--data.{name}={v}" for name, v in {**limits, **_SPLITS}.items()]


def check_files(sources: Mapping[str, str]) -> None:
  """Refuses sources without files, before the model is fetched.

  Raises:
    UserError: a path does not exist, a glob matches nothing, or comparisons
      have weights (`weighted_comparisons`).
  """
  comparisons = specs.parse(sources["comparisons"])
  if any(part.weight is not None for part in comparisons):
    raise UserError(
      "has weights, but every comparison is used once",
      field="comparisons",
      fix="leave out the weights",
      code="weighted_comparisons",
    )
  for name, path in sources.items():
    if name in TASKS:
      registry.read_tasks(f"{name}={path}", 1, 0, name)
    else:
      reading.expand(path)


def run_step(step: Step, directory: pathlib.Path) -> int:
  """Runs a step that is not done yet, and adds its time to seconds.json.

  Args:
    step: the step.
    directory: the run's workdir.

  Returns:
    The exit status of its command.
  """
  if step.output.exists():
    return 0
  began, status = time.monotonic(), 0
  if step.call is not None:
    step.call()
  else:
    log_line(f"python -m {shlex.join(step.command)}")
    files.make_directory(step.output.parent)
    command = [sys.executable, "-m", *step.command]
    status = subprocess.run(command, check=False).returncode
  path = directory / SECONDS
  seconds = files.read_json(path) if path.exists() else {}
  spent = seconds.get(step.name, 0.0) + time.monotonic() - began
  files.write_json_atomic(path, {**seconds, step.name: round(spent, 1)})
  return status
