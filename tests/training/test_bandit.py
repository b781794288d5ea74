"""PPO reaches an optimum that is known in closed form.

Answers have at most two tokens, so all of them can be written down. What
maximises E[reward] − β · KL(π ‖ start) over them is start · exp(reward / β),
normalised, with an objective of β log E_start[exp(reward / β)] for each prompt
(the KL-regularised bandit).
"""

import jax
import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.checkpoint import checkpoints
from instructgpt_jax.data import tokenizers as tokenizer_lib
from instructgpt_jax.models import heads
from instructgpt_jax.runs import files
from instructgpt_jax.training import stage_model, tokenizer_store
from tests.training import exact, toy

BETA = 0.6
COLOURS = toy.COLOURS[:2]
PROMPTS = tuple(f"U: {colour} A:" for colour in COLOURS)
DATA = configs.Data(
  max_prompt_tokens=4,
  max_response_tokens=2,
  user_tag="U:",
  assistant_tag="A:",
  turn_separator=" ",
)
FLAGS = (
  "--preset=world",
  "--model.max_seq_len=8",
  "--data.max_prompt_tokens=4",
  "--data.max_response_tokens=2",
  "--ppo.episodes=19200",
  "--ppo.rollout_batch=128",
  "--ppo.minibatch=64",
  f"--ppo.kl_coef={BETA}",
  "--ppo.ema_decay=0.98",
  "--optimizer.learning_rate=3e-3",
  "--optimizer.schedule=cosine",
  "--optimizer.final_fraction=0",
  "--optimizer.warmup_steps=0",
  "--value_optimizer.learning_rate=1e-2",
  "--value_optimizer.schedule=cosine",
  "--value_optimizer.warmup_steps=0",
  "--run.save_every=0",
  "--run.tensorboard=false",
)


def make_stage(path, network, params, kind, tokenizer):
  """Writes the workdir of a finished stage."""
  tokenizer_store.put_tokenizer(path, tokenizer)
  stage_model.save_stage_model(
    path, params, kind=kind, model=network.config, data=DATA
  )
  files.mark_complete(path, {})
  return path


def all_answers(tokenizer):
  """Returns all answers: end-of-text, or another token and any second."""
  others = [t for t in range(tokenizer.vocab_size) if t != tokenizer.eos_id]
  pairs = [(a, b) for a in others for b in range(tokenizer.vocab_size)]
  return [(tokenizer.eos_id,), *pairs]


def log_likelihoods(network, params, prompt, tokenizer):
  """Computes the log-probability [A] of each answer to a prompt."""
  size, eos = tokenizer.vocab_size, tokenizer.eos_id
  rows = [[*prompt, a] for a in range(size)]
  logits = exact.outputs(network, params, rows)
  logp = exact.log_softmax(logits)
  first, second = logp[0, len(prompt) - 1], logp[:, len(prompt)]
  return np.array(
    [first[eos]]
    + [first[a] + second[a, b] for a, b in all_answers(tokenizer)[1:]]
  )


def rewards(network, params, prompt, tokenizer):
  """Computes the score [A] of each answer to a prompt."""
  answers = all_answers(tokenizer)
  one = exact.outputs(network, params, [[*prompt, *answers[0]]])[:, -1]
  two = exact.outputs(network, params, [[*prompt, *a] for a in answers[1:]])[
    :, -1
  ]
  return np.concatenate([one, two])


@pytest.fixture(scope="module")
def bandit(tmp_path_factory):
  """Returns two stages, the start's log-probabilities and all rewards."""
  directory = tmp_path_factory.mktemp("bandit")
  tokenizer = tokenizer_lib.train_tokenizer(
    [*PROMPTS * 3, "yes no yes no yes no maybe maybe"],
    configs.Tokenizer(vocab_size=64, kind="word"),
  )
  # Both networks depend on the prompt: neither output is constant.
  language, scalar = (
    network(
      configs.Model(
        vocab_size=tokenizer.vocab_size,
        max_seq_len=8,
        num_layers=1,
        d_model=32,
        num_heads=2,
        init_std=init_std,
      )
    )
    for network, init_std in (
      (heads.LanguageModel, 0.1),
      (heads.ScalarModel, 0.3),
    )
  )
  start = heads.init_params(language, jax.random.key(0))
  make_stage(
    directory / "start", language, start, stage_model.LANGUAGE, tokenizer
  )
  scorers = {
    name: heads.init_params(scalar, jax.random.key(seed))
    for seed, name in enumerate(("reward", "second"), 1)
  }
  for name, params in scorers.items():
    make_stage(directory / name, scalar, params, stage_model.SCALAR, tokenizer)
  prompts = [tokenizer.encode(p) for p in PROMPTS]
  lines = [{"prompt": c, "split": "train"} for c in COLOURS]
  toy.write_lines(directory / "prompts.jsonl", lines)
  return dict(
    directory=directory,
    tokenizer=tokenizer,
    network=language,
    prompts=prompts,
    start=np.stack(
      [log_likelihoods(language, start, p, tokenizer) for p in prompts]
    ),
    rewards={
      name: np.stack([rewards(scalar, params, p, tokenizer) for p in prompts])
      for name, params in scorers.items()
    },
  )


def objective(logp, bandit, rewards):
  """Computes E[reward] − β · KL(π ‖ start) exactly."""
  gain = rewards - BETA * (logp - bandit["start"])
  return (np.exp(logp) * gain).sum(axis=1).mean()


def optimum(bandit, rewards):
  tilted = np.exp(bandit["start"] + rewards / BETA)
  return (BETA * np.log(tilted.sum(axis=1))).mean()


def test_the_closed_form_is_the_objective_of_the_tilted_start(bandit):
  rewards = bandit["rewards"]["reward"]
  tilted = bandit["start"] + rewards / BETA
  best = tilted - np.log(np.exp(tilted).sum(axis=1, keepdims=True))
  np.testing.assert_allclose(np.exp(bandit["start"]).sum(axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(
    objective(best, bandit, rewards), optimum(bandit, rewards), rtol=1e-6
  )


@pytest.mark.parametrize(
  ("seed", "names"),
  [(0, ["reward"]), (1, ["reward"]), (0, ["reward", "second"])],
)
def test_the_ppo_stage_reaches_the_optimum_within_two_percent(
  seed, names, bandit, server, tmp_path
):
  """Against two reward models it is that of the lower of their scores."""
  directory = bandit["directory"]
  ensemble = ["--ppo.reward_ensemble=worst"] * (len(names) > 1)
  done = server.run(
    "experiments.ppo",
    *FLAGS,
    f"--seed={seed}",
    f"--workdir={tmp_path}",
    f"--init_from={directory / 'start'}",
    f"--ppo.reward_model={','.join(str(directory / n) for n in names)}",
    *ensemble,
    f"--data.prompts={directory / 'prompts.jsonl'}",
  )
  assert done.status == 0, done.err
  params = checkpoints.load_model(tmp_path)
  logp = np.stack(
    [
      log_likelihoods(bandit["network"], params, p, bandit["tokenizer"])
      for p in bandit["prompts"]
    ]
  )
  rewards = np.minimum.reduce([bandit["rewards"][name] for name in names])
  best, began = (
    optimum(bandit, rewards),
    objective(bandit["start"], bandit, rewards),
  )
  reached = objective(logp, bandit, rewards)
  print(f"from {began:.4f} to {reached:.4f}; the optimum is {best:.4f}")
  assert best - reached <= 0.02 * min(abs(best), best - began)
