"""The reward stage on labels of a known Bradley–Terry model."""

import random

import numpy as np
import pytest

from tests.training import exact, results, toy

# The last but one is only ever tied with the last, and as good.
UTILITIES = np.array([-1.2, -0.8, -0.3, 0.2, 0.7, 1.4, 1.4])
ITEMS = toy.WORDS[: len(UTILITIES)]
TWIN, TWINS_TWIN = len(ITEMS) - 2, len(ITEMS) - 1
FLAGS = (
  "--preset=world",
  "--model.num_layers=1",
  "--model.d_model=16",
  "--model.max_seq_len=8",
  "--data.max_prompt_tokens=5",
  "--data.max_response_tokens=3",
  "--tokenizer.vocab_size=64",
  "--reward.batch_size=128",
  "--reward.epochs=4",
  "--optimizer.learning_rate=1e-2",
  "--optimizer.warmup_steps=5",
  "--optimizer.final_fraction=0.0",
  "--run.tensorboard=false",
  "--run.save_every=0",
)


def make_ranking(rng, number, split):
  """Draws a ranking of K items from a Plackett–Luce model, with ties.

  Pairs without ties follow a Bradley–Terry model.
  """
  chosen = rng.sample(range(TWINS_TWIN), rng.randint(2, 5))
  drawn = {i: UTILITIES[i] - np.log(rng.expovariate(1)) for i in chosen}
  if TWIN in drawn:  # no labeler can tell the two apart
    drawn[TWINS_TWIN] = drawn[TWIN]
  places = sorted(set(drawn.values()), reverse=True)
  colour, other = (toy.COLOURS[n % 4] for n in (number, number // 4))
  return {
    "prompt": colour if split == "train" else f"{colour} {other}",
    "completions": [ITEMS[i] for i in drawn],
    "ranks": [1 + places.index(value) for value in drawn.values()],
    "labeler_id": str(number),
    "split": split,
  }


@pytest.fixture(scope="module")
def trained(server, tmp_path_factory):
  """Returns the stage's workdir, rankings and demonstrations."""
  directory = tmp_path_factory.mktemp("reward")
  rng = random.Random(3)
  rankings = [
    make_ranking(rng, n, s) for n, s in enumerate(toy.splits(3000, 60))
  ]
  demonstrations = [
    # Prompts of their own: those of held-out rankings would be dropped.
    {
      "prompt": f"{toy.COLOURS[2]} {toy.COLOURS[3]} {toy.COLOURS[i % 2]}",
      "completion": ITEMS[i],
      "split": "train",
    }
    for i in (0, 1, 2, 5)
  ]
  command = [
    *FLAGS,
    f"--workdir={directory / 'run'}",
    "--data.comparisons="
    + toy.write_lines(directory / "rankings.jsonl", rankings),
    "--data.demonstrations="
    + toy.write_lines(directory / "demonstrations.jsonl", demonstrations),
  ]
  done = server.run("experiments.reward", *command)
  assert done.status == 0, done.err
  return directory / "run", rankings, demonstrations, command


@pytest.fixture(scope="module")
def scores(trained):
  """Returns the model's scores [prompt, item]."""
  model = exact.Finished(trained[0])
  return np.array([[model.score(p, i) for i in ITEMS] for p in toy.COLOURS])


def test_the_known_bradley_terry_scale_is_recovered(scores):
  known, learned = UTILITIES - UTILITIES.mean(), scores.mean(axis=0)
  slope = (known * learned).sum() / (known * known).sum()
  rest = learned - learned.mean() - slope * known
  print(f"slope {slope:.3f}, largest deviation {abs(rest).max():.3f}")
  assert abs(slope - 1) < 0.1
  assert abs(rest).max() < 0.2


def test_invariant_25_items_that_are_always_tied_score_alike(scores):
  assert abs(scores[:, TWIN] - scores[:, TWINS_TWIN]).max() < 0.3


def test_invariant_27_demonstrations_score_zero_on_average(trained):
  model = exact.Finished(trained[0])
  scores = [model.score(d["prompt"], d["completion"]) for d in trained[2]]
  assert abs(np.mean(scores)) < 1e-5
  assert abs(results.summary(trained[0])["shift"]) > 0.01
  assert np.ptp(scores) > 0.1


def test_accuracy_is_of_held_out_pairs_without_ties(trained):
  model, right, pairs = exact.Finished(trained[0]), 0, 0
  for ranking in trained[1]:
    if ranking["split"] != "valid":
      continue
    of = {
      item: model.score(ranking["prompt"], item)
      for item in ranking["completions"]
    }
    labels = list(zip(ranking["completions"], ranking["ranks"], strict=True))
    for a, rank_a in labels:
      for b, rank_b in labels:
        if rank_a < rank_b:
          pairs += 1
          right += of[a] > of[b]
  accuracy = results.summary(trained[0])["accuracy"]
  assert accuracy["mean"] == pytest.approx(right / pairs)
  assert accuracy["low"] < accuracy["mean"] < accuracy["high"]
  assert accuracy["high"] - accuracy["low"] < 0.5


def test_one_epoch_gives_every_ranking_once(trained):
  log = results.metrics(trained[0])
  assert log[-1]["step"] == -(-3000 // 32)
  assert results.summary(trained[0])["steps"] == -(-3000 // 32)


def test_a_finished_run_is_not_changed(trained, server):
  before = results.snapshot(trained[0])
  done = server.run("experiments.reward", *trained[3])
  assert done.status == 0
  complete, outcome, following = done.err.splitlines()
  assert "already complete" in complete
  assert outcome.startswith("done: ") and following.startswith("next: ")
  assert results.snapshot(trained[0]) == before


def test_without_demonstrations_the_bias_cannot_be_set(
  trained, server, tmp_path
):
  command = [
    f for f in trained[3] if "demonstrations" not in f and "workdir" not in f
  ]
  command.append(f"--workdir={tmp_path / 'run'}")
  done = server.run("experiments.reward", *command)
  assert done.status == 2
  assert "[data.demonstrations]" in done.err
  assert "--reward.normalize=false" in done.err
  assert done.err.count("\n") == 2
