"""Studies with the shape and size of a full run.

The panels "Paper" hold the paper's numbers; those "Here" are invented.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from instructgpt_jax.report.findings import Figure, Panel, Series, Table
from tests.report import sample_study as printed
from tests.report.sample_study import around, pair, points, study


def make_results(names: Sequence[str] = ()) -> dict[str, Any]:
  """Builds all eleven studies, or the named ones."""
  studies = {
    name: make() | {"command": f"make study STUDY={name}"}
    for name, make in STUDIES.items()
    if not names or name in names
  }
  keys = "title reproduced criterion measured paper seeds seconds kind".split()
  return {
    "where": "in a world of 300 words",
    "size": "world",
    "command": "make study",
    "machine": "2 cores of an Intel Xeon",
    "seconds": sum(study["seconds"] for study in studies.values()),
    "verdicts": {
      name: {key: study[key] for key in keys} for name, study in studies.items()
    },
    "studies": studies,
  }


def _sizes() -> dict[str, Any]:
  ours = {k: [0.08 + 0.9 * w for w in wins] for k, wins in printed.WINS.items()}

  def series(xs, rows, half):
    return [
      Series(printed.NAMES[role], points(xs, rows[role], half), role=role)
      for role in printed.NAMES
    ]

  panels = pair(
    {"series": series((26e3, 210e3, 1.7e6), ours, 0.03)},
    {"series": series((1.3e9, 6e9, 175e9), printed.WINS, 0.045)},
    x_label="Parameters",
    y_label="Win rate against the SFT model (share of prompts)",
    x_scale="log",
    lines=[(0.5, "no difference")],
  )
  rows = [
    (printed.NAMES[role], *(around(w, 0.031) for w in wins))
    for role, wins in ours.items()
  ]
  return study(
    "Small aligned models against large base models",
    "Do people prefer a small aligned model to a large one that is not?",
    "The smallest PPO-ptx (26k parameters) is preferred to the largest base "
    "model (1.7M): win rate 0.55 [0.52, 0.58] against 0.30 [0.27, 0.33].",
    "section 4.1, figure 1",
    Figure(
      "Win rate against SFT of the middle size",
      panels,
      "Bars are 95 % intervals over prompts and seeds. The paper compares "
      "with SFT at 175B.",
    ),
    tables=[
      Table("Win rate with its 95 % interval", ["Model", "S", "M", "L"], rows)
    ],
  )


def _ptx() -> dict[str, Any]:
  xs = (0, 0.1, 0.3, 1, 3, 10)
  reading, sums = (71, 78, 84, 87, 88.5, 88.9), (42, 49, 55, 60, 61, 61.5)
  tasks = pair(
    {
      "y_label": "Accuracy (%)",
      "lines": [(88.0, "base, reading"), (61.0, "base, arithmetic")],
      "series": [
        Series("reading", points(xs, reading, 2.1)),
        Series("arithmetic", points(xs, sums, 2.1)),
      ],
    },
    {
      "y_label": "F1 (%)",
      "lines": [(59.2, "GPT-3, SQuAD v2"), (25.4, "GPT-3, DROP")],
      "series": [
        Series("SQuAD v2", points(printed.GAMMA, printed.SQUAD)),
        Series("DROP", points(printed.GAMMA, printed.DROP)),
      ],
    },
    x_label="Pretraining coefficient γ",
    x_scale="log",
  )
  ours = (0.9, 0.88, 0.83, 0.75, 0.5, 0.1)
  reward = pair(
    {"series": [Series("reward", points(xs, ours, 0.05))]},
    {"series": [Series("reward", points(printed.GAMMA, printed.REWARD))]},
    x_label="Pretraining coefficient γ",
    y_label="Validation reward (logits)",
    x_scale="log",
  )
  return study(
    "Pretraining gradients repair the alignment tax",
    "Which weight of pretraining repairs the tax, and what does it cost?",
    "γ ≥ 1 brings both tasks back to the base model; reward falls from 0.90 "
    "[0.85, 0.95] at γ = 0 to 0.75 [0.70, 0.80] there.",
    "E.6, figure 33",
    Figure("Public tasks", tasks),
    Figure("Reward", reward),
    notes=["γ counts per token here; the paper's 27.8 is per example."],
  )


def _kl() -> dict[str, Any]:
  ours = [22 + score for score in printed.SQUAD_KL]
  panels = pair(
    {
      "y_label": "Accuracy (%)",
      "lines": [(88.0, "base, reading")],
      "series": [Series("reading", points(printed.BETA, ours, 3))],
    },
    {
      "y_label": "F1 (%)",
      "lines": [(59.2, "GPT-3, SQuAD v2"), (25.4, "GPT-3, DROP")],
      "series": [
        Series("SQuAD v2", points(printed.BETA, printed.SQUAD_KL)),
        Series("DROP", points(printed.BETA, printed.DROP_KL)),
      ],
    },
    x_label="KL coefficient β",
    x_scale="log",
  )
  return study(
    "A KL penalty cannot replace pretraining gradients",
    "Can a stronger pull towards the start repair the tax on its own?",
    "No β repairs it: the best, 0.54, leaves reading 11.9 points [8.8, 15.0] "
    "below the base model.",
    "E.6, figure 34",
    Figure("Public tasks without ptx", panels),
  )


def _kl_ptx() -> dict[str, Any]:
  xs, ys = printed.LIKERT_BETA, printed.LIKERT_BETA.values()
  ours = points(xs, [4.2, 4.3, 4.4, 4.41, 4.2, 3.9, 3.3], 0.2)
  panels = pair(
    {"series": [Series("PPO-ptx", ours, role="ppo_ptx")]},
    {"series": [Series("PPO-ptx", points(xs, ys, 0.25), role="ppo_ptx")]},
    x_label="KL coefficient β",
    y_label="Likert (1 to 7)",
    x_scale="log",
  )
  return study(
    "The KL penalty has a best strength",
    "How hard should the policy be held to its start when ptx is on?",
    "Our optimum lies at β = 0.02, but β = 0 is no worse than it: "
    "difference 0.04 [−0.11, 0.19].",
    "E.7, figure 36",
    Figure("Quality over β", panels),
    reproduced=False,
  )


def _init() -> dict[str, Any]:
  starts, theirs = printed.STARTS, printed.STARTS.values()
  ours = (4.4, 4.5, 4.46, 4.33)
  panels = pair(
    {"series": [Series("PPO-ptx", points(starts, ours, 0.08))]},
    {"series": [Series("PPO-ptx", points(starts, theirs, 0.2))]},
    y_label="Likert (1 to 7)",
    x_scale="category",
  )
  return study(
    "PPO-ptx hardly depends on its start",
    "Does it matter how the policy is made before reinforcement learning?",
    "Weakly: the best and the worst of six starts differ by 0.17 Likert "
    "[0.05, 0.29].",
    "E.8, figure 37",
    Figure("Quality by start", panels),
  )


def _rates() -> dict[str, Any]:
  def series(up: float, half: float) -> list[Series]:
    return [
      Series(
        printed.NAMES[role],
        points(printed.RATES, [y + up for y in ys], half),
        role=role,
      )
      for role, ys in printed.LIKERT_RATES.items()
    ]

  panels = pair(
    {"series": series(0.3, 0.1)},
    {"series": series(0.0, 0.0)},
    x_label="Peak learning rate (10⁻⁶)",
    y_label="Likert (1 to 7)",
    x_scale="log",
  )
  columns = ["Learning rate", "PPO", "PPO-ptx", "What happened"]
  rows = [
    (f"{r}e-6", 3 * (r > 9), 0, "KL above 50 nats a response" * (r > 9))
    for r in printed.RATES
  ]
  return study(
    "Pretraining gradients make PPO robust to its learning rate",
    "Where does training diverge, with and without pretraining?",
    "Without ptx everything above 8.05 diverges in all seeds; with ptx "
    "nothing does.",
    "E.9, figure 38",
    Figure("Quality over learning rate", panels, "Diverged runs are absent."),
    tables=[Table("Runs that diverged, of 3", columns, rows)],
  )


def _longer() -> dict[str, Any]:
  def form(alpha: float, beta: float, count: int, log: bool) -> list:
    ds = [0.05 + 7 * i / count for i in range(count)]
    return [(d, d * (alpha - beta * (math.log(d) if log else d))) for d in ds]

  series = []
  for name, role, fit in (
    ("best of n, gold", "best_of_n", (0.5, 0.05, False)),
    ("PPO, gold", "ppo", (0.55, 0.28, True)),
  ):
    alpha, beta, log = fit
    noisy = [
      (x, around(y + 0.1 * math.sin(9 * x), 0.12))
      for x, y in form(alpha, beta, 9, log)
    ]
    line = form(alpha, beta, 80, log)
    series.append(Series(name, noisy, role=role, line=False))
    series.append(Series(f"{name}, fitted", line, role=role, curve=True))
  proxy = [(d, 0.34 * d) for d, _ in form(1, 0, 24, False)]
  here = Panel(
    "Here",
    x_label="Distance from the start √KL (√nats)",
    y_label="Score above the start (logits)",
    series=[*series, Series("PPO, proxy", proxy)],
  )
  paper = Panel(
    "Paper",
    x_label="Episodes",
    y_label="SQuAD v2 F1 (%)",
    lines=[(59.2, "GPT-3")],
    series=[
      Series("PPO-ptx", points(printed.EPISODES, printed.SQUAD_LONG), "ppo_ptx")
    ],
  )
  return study(
    "Longer training overoptimizes the reward model",
    "Does the true score fall while the reward model's still rises?",
    "Gold peaks at √KL = 2.6 [2.2, 3.0] while the proxy rises to the end; "
    "both of Gao's forms fit with R² ≥ 0.97.",
    "E.6, figure 35; Gao et al. 2022",
    Figure(
      "Gold and proxy",
      [here, paper],
      "The paper shows a public task over episodes; Gao et al. print the "
      "forms R = d(α − β d) and R = d(α − β ln d), but no points.",
    ),
  )


def _reward() -> dict[str, Any]:
  ours = {
    "in group": 76.2,
    "held-out labelers": 73.4,
    "K ranked in one element, 1 epoch": 76.3,
    "shuffled pairs, 1 epoch": 74.0,
  }
  theirs = [
    ("in group", 72.4, 72, 72.8),
    ("held-out labelers", 69.6, 68.7, 70.5),
  ]
  panels = pair(
    {"series": [Series("RM", points(ours, ours.values(), 0.8))]},
    {"series": [Series("RM", theirs)]},
    y_label="Accuracy on held-out pairs (%)",
    x_scale="category",
  )
  return study(
    "Rankings are fed as one element",
    "How must rankings be shown to a reward model, and to whom does it carry?",
    "Shuffled pairs lose 2.3 points [1.1, 3.5] to ranked elements; held-out "
    "labelers cost 2.8 [1.5, 4.1].",
    "C.2, section 3.5",
    Figure("Accuracy", panels),
  )


def _sft() -> dict[str, Any]:
  epochs = range(1, 17)
  panels = [
    Panel(
      f"Here: {title}",
      x_label="Epochs",
      y_label=label,
      series=[Series("SFT", points(epochs, map(f, epochs), half), "sft")],
    )
    for title, label, half, f in (
      (
        "loss",
        "Validation loss (nats a token)",
        0.01,
        lambda e: 0.6 + 0.02 * abs(e - 3) ** 1.2,
      ),
      ("RM score", "RM score (logits)", 0.06, lambda e: 0.9 - math.exp(-e / 4)),
      ("gold", "Gold score (0 to 1)", 0.02, lambda e: 0.7 - 0.3 / e),
    )
  ]
  return study(
    "The reward model picks the better SFT checkpoint",
    "Which of the two picks the better checkpoint?",
    "Loss is lowest after 3 epochs, RM score after 14; the pick by RM score "
    "wins 0.58 [0.55, 0.61] against the pick by loss.",
    "C.1",
    Figure("Sixteen epochs", panels),
  )


def _failures() -> dict[str, Any]:
  def series(names: dict[str, str], shift: float) -> list[Series]:
    return [
      Series(
        name,
        points(
          printed.FAILURES,
          [row[min(at, 4)] - shift * at for row in printed.FAILURES.values()],
          0.02 + shift,
        ),
        role=role,
      )
      for at, (role, name) in enumerate(names.items())
    ]

  extra = {"rule_filter": "rule filter", "flan": "FLAN"}
  panels = pair(
    {"series": series(printed.NAMES | extra, 0.01)},
    {"series": series(printed.NAMES, 0.0)},
    y_label="Responses (share)",
    x_scale="category",
  )
  return study(
    "Alignment mends most failures, and not bias",
    "Which failures does each way of alignment remove?",
    "",
    "figures 4 to 7",
    Figure("Label form", panels),
    reproduced=None,
    missing=7,
  )


def _ours() -> dict[str, Any]:
  choices = {
    "no EMA": 0.655,
    "value network from the policy": 0.63,
    "advantages not whitened": 0.658,
    "K = 2": 0.61,
  }
  panel = Panel(
    "Here",
    y_label="Gold score (0 to 1)",
    x_scale="category",
    lines=[(0.66, "all as in the paper")],
    series=[Series("gold", points(choices, choices.values(), 0.014))],
  )
  return study(
    "What the paper did not show",
    "Do EMA, the value network's start, whitening and K matter?",
    "EMA and whitening change nothing we can measure; a value network from "
    "the RM gains 0.03 gold [0.01, 0.05].",
    "ours",
    Figure("Gold score by choice", [panel]),
    reproduced=None,
    kind="ours",
  )


STUDIES: dict[str, Callable[[], dict[str, Any]]] = {
  "model_size": _sizes,
  "ptx_coef": _ptx,
  "kl_coef": _kl,
  "kl_coef_ptx": _kl_ptx,
  "policy_init": _init,
  "learning_rate": _rates,
  "longer": _longer,
  "reward_model": _reward,
  "sft_epochs": _sft,
  "failures": _failures,
  "ours": _ours,
}
