"""A finished stage as the judge, by its command."""

import json

import jax
import numpy as np
import pytest

from experiments import judge as judge_main
from instructgpt_jax import configs
from instructgpt_jax.data import tokenizers as tokenizer_lib
from instructgpt_jax.evaluation import judge_command, pair_judges
from instructgpt_jax.models import heads
from instructgpt_jax.runs import files
from instructgpt_jax.training import stage_model, tokenizer_store
from tests.evaluation.made_judges import write_lines

language_model = pytest.importorskip(
  "instructgpt_jax.evaluation.language_model"
)
TEMPLATE = "{prompt} one {answer_a} two {answer_b} better :"
WORDS = "the fox saw a bird and sang for two old owls near one red barn".split()


@pytest.fixture
def stage(tmp_path):
  """Writes a language model of 24 positions whose words are equally good."""
  text = " ".join([*WORDS, "better : A B tie"])
  tokenizer = tokenizer_lib.train_tokenizer(
    [text] * 3, configs.Tokenizer(vocab_size=64, kind="word")
  )
  network = heads.LanguageModel(
    configs.Model(
      vocab_size=tokenizer.vocab_size,
      max_seq_len=24,
      num_layers=1,
      d_model=16,
      num_heads=2,
      init_std=0.3,
    )
  )
  path = tmp_path / "stage"
  tokenizer_store.put_tokenizer(path, tokenizer)
  stage_model.save_stage_model(
    path,
    heads.init_params(network, jax.random.key(0)),
    kind=stage_model.LANGUAGE,
    model=network.config,
    data=configs.Data(),
  )
  files.mark_complete(path, {})
  return path


def test_verdicts_are_the_likeliest_words(stage, tmp_path):
  template = tmp_path / "template.txt"
  template.write_text(TEMPLATE)
  pairs = [
    (
      "the fox saw",
      " ".join(WORDS[i : i + 3]),
      " ".join(WORDS[-i - 4 : -i - 1]),
    )
    for i in range(5)
  ]
  data = write_lines(
    tmp_path / "pairs.jsonl",
    *(
      {"input": p, "output_1": a, "output_2": b, "label": 1}
      for p, a, b in [*pairs, ("the", " ".join(WORDS), " ".join(WORDS[:9]))]
    ),
  )
  output = tmp_path / "out"
  status = judge_main.main(
    [f"--judge={stage}", f"--human=llmbar={data}", f"--output={output}",
     f"--template={template}"]
  )  # fmt: skip
  assert status == 0
  lines = (output / judge_command.VERDICTS).read_text().splitlines()
  *rows, long = [json.loads(line) for line in lines]
  assert long["as_a"]["problem"] == pair_judges.TOO_LONG
  report = json.loads((output / judge_command.REPORT).read_text())
  (figures,) = report["human"].values()
  assert figures["pairs"] == 5 and len(report["left_out"]) == 1
  model = language_model.TextModel(str(stage))
  for row, (prompt, a, b) in zip(rows, pairs, strict=True):
    for key, first, second in (("as_a", a, b), ("as_b", b, a)):
      question = pair_judges.render(TEMPLATE, prompt, first, second)
      scores = model.log_likelihoods(
        [(question, f" {word}") for word in ("A", "tie", "B")]
      )
      likelihoods = np.exp([score.total for score in scores])
      expected = float(likelihoods @ [1, 0.5, 0] / likelihoods.sum())
      value = [1, 0.5, 0][int(likelihoods.argmax())]
      if key == "as_b":
        expected, value = 1 - expected, 1 - value
      assert row[key]["probability"] == pytest.approx(expected, abs=1e-4)
      assert row[key]["value"] == value
