"""The begin-of-text token is only at the beginning of a text."""

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data.records import Prompt, Turn
from instructgpt_jax.evaluation import bias, tasks
from instructgpt_jax.evaluation.evaluator import Evaluator, Model
from instructgpt_jax.training import scoring
from tests.data import tokenizer_folders as folders

ITEM = {"prompt": "the fox", "choices": ["jumps over", "yes"], "answer": 0}


@pytest.fixture
def examples(monkeypatch):
  """Returns rows whose likelihood is measured."""
  rows = []

  def log_likelihood(model, params, asked, mesh):
    rows.extend(asked)
    return np.zeros(len(asked))

  monkeypatch.setattr(scoring, "log_likelihood", log_likelihood)
  return rows


def load(folder, kind, **settings):
  return folders.load(
    folder,
    folders.KINDS[kind](),
    begins=True,
    tokenizer_config={"eos_token": "</s>", "bos_token": "<s>", **settings},
  )


@pytest.mark.parametrize("kind", folders.KINDS)
def test_choices_of_a_task(kind, tmp_path, examples):
  tokenizer = load(tmp_path, kind)
  tasks._mean_choice_logps(None, None, [ITEM], tokenizer, None)
  for row, choice in zip(examples, ITEM["choices"], strict=True):
    whole = tokenizer.encode(f"{ITEM['prompt']} {choice}")
    assert list(row.ids) == [*tokenizer.begin, *whole]
    scored = row.ids[row.weights > 0]
    prompt = tokenizer.encode(ITEM["prompt"])
    assert list(scored) == whole[len(prompt) :]


@pytest.mark.parametrize("prefix", ["", "hello"])
def test_sentences_about_groups(prefix, tmp_path, examples):
  tokenizer = load(tmp_path, "byte_level")
  pair = ("the fox is nice .", "the dog is nice .")
  bias.measure_bias(
    None, None, [pair], prefix=prefix, tokenizer=tokenizer, mesh=None
  )
  for row, sentence in zip(examples, pair, strict=True):
    text = f"{prefix}review : {sentence}"
    assert list(row.ids) == [*tokenizer.begin, *tokenizer.encode(text)]
    start = len(tokenizer.begin) + len(tokenizer.encode(prefix))
    assert (row.weights[:start] == 0).all() and (row.weights[start:] == 1).all()


class Network:
  config = configs.Model(max_seq_len=2048)


@pytest.mark.parametrize("refuses", [True, False])
def test_the_prompted_baseline_where_a_template_takes_no_system_turn(
  refuses, tmp_path
):
  refusal = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
  )
  tokenizer = load(
    tmp_path,
    "byte_level",
    chat_template=(refusal if refuses else "") + folders.CHATML,
  )
  measured = Evaluator(
    seed=0,
    data=configs.Data(),
    settings=configs.Evaluation(),
    mesh=None,
    tokenizer=tokenizer,
    start=Model(Network, None),
    reward=None,
    judge=None,
    prompts=[],
  )
  prompt = Prompt(turns=(Turn("user", "the fox?"),))
  (ids,) = measured.encode("Answer well.", [prompt])
  shown = tokenizer.rust.decode(ids, skip_special_tokens=False)
  end = "<|im_end|>\n<|im_start|>assistant\n"
  between = "\n\n" if refuses else "<|im_end|>\n<|im_start|>user\n"
  role = "user" if refuses else "system"
  first = f"<|im_start|>{role}\nAnswer well.{between}the fox?"
  assert shown == first + end
