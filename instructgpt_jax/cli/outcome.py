"""The last lines of a finished run: where its results are, and what is next."""

from __future__ import annotations

import os
import shlex

# Files and directories of a workdir that users open, most important first.
_RESULTS = (
  "report.html",
  "model",
  "answers.json",
  "pairs.json",
  "round_1.jsonl",
  "metrics.jsonl",
)
_CHAT = "chat with it: python -m instructgpt_jax.chat --checkpoint={workdir}"
_NEXT = {
  "pretrain": (
    "fine-tune it: python -m experiments.sft --init_from={workdir}, or"
    " experiments.policy_init for PPO"
  ),
  "sft": _CHAT,
  "policy_init": (
    "train a reward model: python -m experiments.reward --init_from={workdir}"
  ),
  "reward": (
    "use it in PPO: python -m experiments.ppo --ppo.reward_model={workdir}"
  ),
  "ppo": _CHAT,
  "ppo_ptx": _CHAT,
  "pipeline": (
    "open the report, or chat: python -m instructgpt_jax.chat"
    " --checkpoint={workdir}/ppo_ptx"
  ),
}


def outcome(experiment: str, workdir: str) -> str:
  """Returns the lines for the user after a run has finished.

  Args:
    experiment: name of the experiment, such as "sft".
    workdir: directory of the run.
  """
  results = [
    name for name in _RESULTS if os.path.exists(os.path.join(workdir, name))
  ]
  line = f"done: {workdir}"
  if not results:
    return line
  line += f" ({', '.join(results)})"
  if experiment == "pipeline" and "report.html" not in results:
    return line  # It has stopped at --until.
  advice = _NEXT.get(experiment)
  if advice:
    line += f"\nnext: {advice.format(workdir=shlex.quote(workdir))}"
  return line
