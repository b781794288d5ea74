"""Tests overoptimisation: gold and proxy scores over sqrt(KL), longer runs.

  make study STUDY=overoptimization

Figure 35, and the two laws of Gao et al. (arXiv:2210.10760): along best-of-n
R(d) = d (α − β d), along reinforcement learning R(d) = d (α − β ln d), with
d = sqrt(KL) and R the gain in gold score.

Cost: 1 h 7 min with five seeds, shared runs included
(docs/results/results.json).
Result: reproduced. The gold score is highest after 10 iterations, and falls by
0.27 from the best snapshot to the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from experiments.studies import model_size
from instructgpt_jax import statistics
from instructgpt_jax.report.findings import Figure, Panel, Series, Table
from instructgpt_jax.studies import analysis
from instructgpt_jax.studies.seed_runs import SeedRuns
from instructgpt_jax.studies.study import Finding, Study
from instructgpt_jax.sweeps.jobs import Job

STEPS = (5, 10, 15, 20, 30, 40, 80)  # iterations of PPO without a penalty
LONG = (40, 80, 160)  # of PPO-ptx
SAMPLES = 32
LARGER_SIZE = "middle"
# Reward models; the first is the one that all other studies use.
ALL, FEWER, LARGER = "all rankings", "150 rankings", "a larger network"
REWARDS = (ALL, FEWER, LARGER)
ONLY_ANSWERS = {"measure.task_items": 0, "measure.rows": 0}
PAPER_EPISODES = (512, 65e3, 131e3, 197e3, 262e3, 328e3, 393e3, 459e3, 512e3)
PAPER_SQUAD = (62.8, 61.7, 60.4, 57.1, 57.8, 56.1, 56.7, 56.0, 56.1)


def proxy(f: SeedRuns, name: str) -> Job | str:
  """Returns a reward model: a job, or the shared stage's name."""
  if name == FEWER:
    return f.training_job(
      "reward", {"reward.max_rankings": 150}, init=f.reward_start()
    )
  if name == LARGER:
    return f.training_job(
      "reward", init=larger_start(f), size=LARGER_SIZE, label=LARGER_SIZE
    )
  return "reward"


def larger_start(f: SeedRuns) -> Job | str:
  """Returns what the larger reward model starts from."""
  starts = model_size.starts(f, LARGER_SIZE)
  return f.reward_start(*starts, size=LARGER_SIZE, label=LARGER_SIZE)


def _label(name: str) -> str:
  return {FEWER: "fewer", LARGER: f"rm={LARGER_SIZE}"}.get(name, "")


def run(f: SeedRuns, name: str) -> Job:
  """Builds the job of PPO without any penalty against a reward model."""
  reward = proxy(f, name)
  return f.ppo_job(
    _lasting(f, STEPS[-1], STEPS[0])
    | {"ppo.ptx_coef": 0.0, "ppo.kl_coef": 0.0},
    reward=reward,
    label=_label(name),
  )


def longer(f: SeedRuns) -> Job:
  """Builds the job of default PPO-ptx with more iterations."""
  return f.ppo_job(_lasting(f, LONG[-1], LONG[0]))


def _lasting(f: SeedRuns, iterations: int, every: int) -> dict[str, int]:
  batch = f.scale.value("ppo.rollout_batch")
  return {"ppo.episodes": iterations * batch, "ppo.snapshot_every": every}


def at(f: SeedRuns, name: str, step: int) -> Job:
  """Builds the evaluation of a policy at a step by its own reward model."""
  changes = ONLY_ANSWERS | {"measure.reward_model": f.directory(proxy(f, name))}
  return f.evaluation_job(run(f, name), changes, snapshot=step)


def best(f: SeedRuns, name: str) -> Job:
  """Builds the evaluation of best-of-n answers of the start."""
  reward = proxy(f, name)
  return f.evaluation_job(
    "policy_init",
    ONLY_ANSWERS
    | {
      "measure.samples_kept": SAMPLES,
      "measure.reward_model": f.directory(reward),
    },
    label=",".join(filter(None, (f"best_of_{SAMPLES}", _label(name)))),
    needs=[reward] if isinstance(reward, Job) else [],
  )


def jobs(f: SeedRuns) -> Sequence[Job]:
  """Lists reward models, long runs, and measurements along them."""
  starts = {j.name: j for j in model_size.starts(f, LARGER_SIZE)}
  proxies = [larger_start(f), *(proxy(f, name) for name in REWARDS)]
  trained = starts | {j.name: j for j in proxies if isinstance(j, Job)}
  return [
    *trained.values(),
    *(run(f, name) for name in REWARDS),
    longer(f),
    *(best(f, name) for name in REWARDS),
    *(at(f, name, step) for name in REWARDS for step in STEPS),
    *(f.evaluation_job(longer(f), snapshot=step) for step in LONG),
  ]


def fitted(
  distances: Sequence[float],
  gains: Sequence[float],
  bend: Callable[[np.ndarray], np.ndarray],
) -> tuple[float, float]:
  """Fits α and β of gain = d (α − β bend(d)) by least squares."""
  d = np.asarray(distances, np.float64)
  solution, *_ = np.linalg.lstsq(
    np.stack([d, -d * bend(d)], axis=1), np.asarray(gains), rcond=None
  )
  return float(solution[0]), float(solution[1])


def analyse(seeds: Sequence[SeedRuns]) -> Finding:
  """Fits the curves; tests whether gold falls while the proxy rises."""
  curves = {name: _curve(seeds, name) for name in REWARDS}
  main = curves[ALL]
  peak = max(range(len(STEPS)), key=lambda i: main["gold"][i].mean)

  def of(step: int):
    return lambda f: at(f, ALL, step)

  options = {step: of(step) for step in STEPS}
  peaks = analysis.choose_options(seeds, options, analysis.gold)
  fall, rise = (
    analysis.difference_from_chosen(seeds, of(STEPS[-1]), options, peaks, value)
    for value in (analysis.gold, analysis.rm)
  )
  won = analysis.is_below(fall) and analysis.is_above(rise)
  tasks = [
    analysis.mean_interval(
      seeds,
      lambda f, step=step: f.evaluation_job(longer(f), snapshot=step),
      analysis.tasks,
    )
    for step in LONG
  ]
  batch = seeds[0].scale.value("ppo.rollout_batch")
  return Finding(
    won,
    f"Gold is best after {STEPS[peak]} iterations. From the snapshot that is"
    " best on the other seeds to the last one it changes by"
    f" {analysis.format_interval(fall, 2)}"
    f", the RM score by {analysis.format_interval(rise, 2)}.",
    [
      Figure(
        "Gold and proxy over the distance from the start",
        [_panel(curves, "gold"), _panel(curves, "proxy")],
        "Dashed: d (α − β ln d) fitted to reinforcement learning and"
        " d (α − β d) to best-of-n (Gao et al.).",
      ),
      Figure(
        "Longer training of PPO-ptx",
        [
          Panel(
            "Here",
            x_label="Episodes",
            y_label="Public tasks (share right)",
            x_scale="log",
            series=[
              Series(
                "Translation and reading",
                [
                  (step * batch, x)
                  for step, x in zip(LONG, tasks, strict=True)
                ],
                role="ppo_ptx",
              )
            ],
          ),
          Panel(
            "Paper",
            x_label="Episodes",
            y_label="SQuAD v2 F1 (%)",
            x_scale="log",
            lines=[(analysis.GPT_SQUAD, "GPT")],
            series=[
              Series(
                "PPO-ptx",
                zip(PAPER_EPISODES, PAPER_SQUAD, strict=True),
                role="ppo_ptx",
              )
            ],
          ),
        ],
      ),
    ],
    [
      Table(
        f"Reward model with {name}",
        ["policy", "sqrt(KL)", "gold", "proxy"],
        [
          *(
            (f"PPO, iteration {step}", d, gold, rm)
            for step, d, gold, rm in zip(
              STEPS, c["distance"], c["gold"], c["proxy"], strict=True
            )
          ),
          *(
            (f"best of {n}", d, gold, rm)
            for n, d, gold, rm in c["best"]
          ),
        ],
      )
      for name, c in curves.items()
    ],
    [_fits(curves)],
  )  # fmt: skip


def _curve(seeds: Sequence[SeedRuns], name: str) -> dict:
  gold, rm, distance = [], [], []
  for step in STEPS:

    def of(f: SeedRuns, step: int = step) -> Job:
      return at(f, name, step)

    gold.append(analysis.mean_interval(seeds, of, analysis.gold))
    rm.append(analysis.mean_interval(seeds, of, analysis.rm))
    kl = analysis.mean_interval(seeds, of, analysis.kl).mean
    distance.append(math.sqrt(max(kl, 0.0)))
  measurements = [f.measurements(best(f, name)) for f in seeds]
  picked = []
  for n in statistics.doublings(SAMPLES):
    intervals = [
      statistics.pooled_interval([
        statistics.unbiased_best_of_n(
          a.best_of_n_samples("rm"), a.best_of_n_samples(key), n
        )
        for a in measurements
      ])
      for key in ("gold", "rm")
    ]  # fmt: skip
    picked.append((n, math.sqrt(statistics.best_of_n_kl(n)), *intervals))
  return {"gold": gold, "proxy": rm, "distance": distance, "best": picked}


def _laws(curve: dict) -> dict[str, tuple[float, float]]:
  zero = curve["best"][0][2].mean
  return {
    "PPO": fitted(
      curve["distance"],
      [x.mean - zero for x in curve["gold"]],
      lambda d: np.log(np.maximum(d, 1e-6)),
    ),
    "best of n": fitted(
      [d for _, d, *_ in curve["best"][1:]],
      [x.mean - zero for _, _, x, _ in curve["best"][1:]],
      lambda d: d,
    ),
  }


def _fits(curves: dict) -> str:
  parts = []
  for name, curve in curves.items():
    for what, (alpha, beta) in _laws(curve).items():
      parts.append(f"{what}, {name}: α = {alpha:.3f}, β = {beta:.3f}")
  return "Fits. " + "; ".join(parts) + "."


def _panel(curves: dict, key: str) -> Panel:
  series = []
  for name, curve in curves.items():
    ppo = list(zip(curve["distance"], curve[key], strict=True))
    picked = [
      (d, gold if key == "gold" else rm) for _, d, gold, rm in curve["best"]
    ]
    series += [
      Series(f"PPO, {name}", ppo, role="ppo" if name == ALL else ""),
      Series(
        f"Best of n, {name}",
        picked,
        role="best_of_n" if name == ALL else "",
      ),
    ]
    if key == "gold":
      zero = curve["best"][0][2].mean
      for what, (alpha, beta) in _laws(curve).items():
        last = (curve["distance"] if what == "PPO" else [picked[-1][0]])[-1]
        grid = np.linspace(0.05, max(last, 0.1), 40)
        bend = np.log(grid) if what == "PPO" else grid
        series.append(
          Series(
            f"fit, {what}, {name}",
            list(zip(grid, zero + grid * (alpha - beta * bend), strict=True)),
            curve=True,
          )
        )
  return Panel(
    "Gold" if key == "gold" else "Proxy",
    x_label="sqrt(KL to the start) (√nats)",
    y_label="Gold score (0 to 1)" if key == "gold" else "RM score (logits)",
    series=series,
  )


STUDY = Study(
  name="overoptimization",
  title="Longer and stronger optimisation against a reward model turns bad",
  question="What happens when PPO goes on, and further from its start?",
  source="appendix E.6, figure 35; Gao et al. 2022",
  paper=(
    "Training PPO-ptx past 256k episodes does not help, and SQuAD slowly"
    " falls. Gao et al.: with the distance from the start the gold score first"
    " rises and then falls, while the proxy goes on rising; more labels help."
  ),
  setup=(
    f"PPO without a KL penalty for {STEPS[-1]} iterations, against a reward"
    " model from all rankings, from 150 of them, and of the middle size; best"
    f" of up to {SAMPLES}; gold and proxy on held-out prompts along the way."
    f" PPO-ptx for {LONG[-1]} iterations."
  ),
  criterion=(
    "From its best snapshot to the last one the gold score falls and the reward"
    " model's score rises, with whole 95 % intervals of the paired"
    " differences. Which snapshot is best for a seed is chosen on the other"
    " seeds (with one seed, on half of its prompts) and not on what is tested."
  ),
  jobs=jobs,
  analyse=analyse,
)
