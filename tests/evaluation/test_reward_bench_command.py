"""Tests reward models by the command, and beside `transformers`."""

import json
import types

import jax
import numpy as np
import pytest

from experiments import reward_bench
from instructgpt_jax import configs
from instructgpt_jax.data import tokenizers as tokenizer_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import (
  reward_bench_command,
  reward_bench_files,
  reward_bench_scores,
)
from instructgpt_jax.hub import __main__ as hub_command
from instructgpt_jax.models import heads
from instructgpt_jax.runs import files
from instructgpt_jax.training import stage_model, tokenizer_store
from tests.evaluation.made_judges import write_lines
from tests.interop import tiny

DATA = configs.Data(user_tag="U:", assistant_tag="A:", turn_separator=" ")
WORDS = "the fox saw a bird and sang for two old owls near one red barn".split()
SUBSETS = ("hep-cpp", "alpacaeval-easy")


def make_reward_model(path, seed, tokenizer):
  network = heads.ScalarModel(
    configs.Model(
      vocab_size=tokenizer.vocab_size,
      max_seq_len=32,
      num_layers=1,
      d_model=16,
      num_heads=2,
      init_std=0.3,
    )
  )
  tokenizer_store.put_tokenizer(path, tokenizer)
  stage_model.save_stage_model(
    path,
    heads.init_params(network, jax.random.key(seed)),
    kind=stage_model.SCALAR,
    model=network.config,
    data=DATA,
  )
  files.mark_complete(path, {})
  return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """Returns the directories of two reward models."""
  directory = tmp_path_factory.mktemp("rewards")
  texts = [" ".join(["U:", *WORDS[i:], "A:", *WORDS[:i]]) for i in range(14)]
  tokenizer = tokenizer_lib.train_tokenizer(
    texts, configs.Tokenizer(vocab_size=64, kind="word")
  )
  return [
    make_reward_model(directory / name, seed, tokenizer)
    for seed, name in enumerate(("one", "two"))
  ]


def write_pairs(path, count=40, long=0):
  random = np.random.default_rng(0)

  def text(size):
    return " ".join(random.choice(WORDS, size))

  return write_lines(
    path,
    *(
      {
        "prompt": text(4),
        "chosen": text(int(random.integers(1, 9)) if i >= long else 40),
        "rejected": text(int(random.integers(1, 9))),
        "subset": SUBSETS[i % 2],
        "id": i,
      }
      for i in range(count)
    ),
  )


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Runs the command; returns its report and the scores of all items."""
  monkeypatch.setattr(reward_bench_scores, "_RESAMPLES", 50)

  def call(models, data, *flags):
    output = tmp_path / "report"
    status = reward_bench.main(
      [f"--reward_model={','.join(models)}", f"--data={data}",
       f"--output={output}", "--overwrite", *flags]
    )  # fmt: skip
    assert status == 0
    lines = (output / reward_bench_command.SCORES).read_text().splitlines()
    assert (output / reward_bench_command.PICTURE).stat().st_size
    report = json.loads((output / reward_bench_command.REPORT).read_text())
    return report, [json.loads(line) for line in lines]

  return call


def test_several_models_and_their_ensembles(models, run, tmp_path, capsys):
  data = write_pairs(tmp_path / "pairs.jsonl", long=5)
  report, rows = run(models, data, "--deviation_coef=0.5")
  assert report["format"] == "rewardbench" and report["items"] == 35
  # One line for each model; 5 of 40 items are more than a tenth.
  assert len(report["left_out"]) == len(report["warnings"]) == 2
  scores = {
    name: np.array([row["scores"][name] for row in rows])
    for name in rows[0]["scores"]
  }
  single = np.stack([scores[path] for path in models])
  np.testing.assert_array_equal(scores["ensemble: worst"], single.min(axis=0))
  np.testing.assert_allclose(
    scores["ensemble: mean_minus_deviation"],
    single.mean(axis=0) - 0.5 * single.std(axis=0),
    atol=1e-5,
  )
  for name, values in scores.items():
    right = values[:, 0] > values[:, 1]
    by_subset = {
      s: right[[row["subset"] == s for row in rows]].mean() for s in SUBSETS
    }
    figures = report["models"][name]
    assert {
      s: f["mean"] for s, f in figures["subsets"].items()
    } == pytest.approx(by_subset)
  assert "**Reasoning**" in capsys.readouterr().out


def test_an_exported_model_scores_as_in_transformers(models, run, tmp_path):
  """Others see texts: conversations by the chat template, in a padded batch.

  This is what RewardBench's own pipeline does.
  """
  torch, transformers = map(tiny.library, ("torch", "transformers"))
  data = write_pairs(tmp_path / "pairs.jsonl", count=6)
  exported = tmp_path / "exported"
  hub_command.export_model(models[0], str(exported))
  _, rows = run([models[0]], data)
  # Read back here, a directory does not say how its prompts are tagged.
  _, again = run(
    [str(exported)], data, "--user_tag=U:", "--assistant_tag=A:",
    "--turn_separator= ",
  )  # fmt: skip
  theirs = tiny.load(exported, scalar=True)
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(exported)
  items = reward_bench_files.read_benchmark(data).items
  for item, row, other in zip(items, rows, again, strict=True):
    messages = [{"role": "user", "content": item.turns[0].text}]
    texts = [
      tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": answer}], tokenize=False
      )
      for answer in item.answers
    ]
    batch = tokenizer(
      texts, truncation=True, max_length=32, padding=True, return_tensors="pt",
      return_token_type_ids=False,
    )  # fmt: skip
    with torch.no_grad():
      first, second = theirs(**batch).logits[:, 0].tolist()
    (ours,), (read_back,) = row["scores"].values(), other["scores"].values()
    # An export leaves out the bias of the score, which all answers share.
    assert ours[0] - ours[1] == pytest.approx(first - second, abs=1e-4)
    assert read_back == pytest.approx(ours, abs=1e-4)
    assert row["id"] == item.number


def test_scores_that_are_not_finite_are_refused(monkeypatch):
  scorer = types.SimpleNamespace(
    score=lambda examples, mesh: np.array([np.nan, 1.0], np.float32)
  )
  monkeypatch.setattr(
    reward_bench_command.held_out, "load_scorer", lambda *_: scorer
  )
  item = reward_bench_files.Item((), ("a", "b"), (1, 2), "f", "1")
  stage = types.SimpleNamespace(path="diverged")
  with pytest.raises(UserError) as error:
    reward_bench_command.score_answers([stage], [item], [[[None, None]]])
  assert (error.value.code, error.value.file) == ("not_finite", "diverged")


@pytest.mark.parametrize(
  ("flags", "code"),
  [
    (["--reward_model=MODEL,MODEL"], "bad_reward_models"),
    (["--reward_model=MODEL,"], "bad_reward_models"),
    (["--reward_model=NOWHERE"], "no_directory"),
    (["--reward_model=MODEL", "--user_tag=U:"], "unused_tag"),
    (["--reward_model=MODEL", "--data=LONG"], "left_out"),
    (["--reward_model=MODEL", "--deviation_coef=0"], "not_allowed"),
    (["--reward_model=MODEL", "--data=EMPTY"], "empty_file"),
  ],
)
def test_errors_name_what_is_wrong(flags, code, models, tmp_path, monkeypatch):
  from tests import printed

  errors = printed.record_errors(monkeypatch)
  (tmp_path / "empty.jsonl").write_text("")
  names = {
    "MODEL": models[0],
    "LONG": write_pairs(tmp_path / "long.jsonl", count=4, long=3),
    "EMPTY": str(tmp_path / "empty.jsonl"),
    "NOWHERE": str(tmp_path / "nowhere"),
  }
  for name, value in names.items():
    flags = [flag.replace(name, value) for flag in flags]
  if not any("--data" in flag for flag in flags):
    flags.append(f"--data={write_pairs(tmp_path / 'x.jsonl', count=4)}")
  status = reward_bench.main([*flags, f"--output={tmp_path / 'out'}"])
  assert (status, errors[-1].code) == (2, code)
  assert not (tmp_path / "out").exists()
