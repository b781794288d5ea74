"""The begin-of-text token is only at the beginning of a text."""

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data.records import Prompt, Turn
from instructgpt_jax.evaluation import bias, evaluate
from instructgpt_jax.evaluation.evaluator import Evaluator, Model
from instructgpt_jax.evaluation.language_model import LogLikelihood, TextModel
from tests.data import tokenizer_folders as folders


def load(folder, kind, **settings):
  return folders.load(
    folder,
    folders.KINDS[kind](),
    begins=True,
    tokenizer_config={"eos_token": "</s>", "bos_token": "<s>", **settings},
  )


@pytest.fixture
def text_model():
  """Returns a function that makes a model of a tokenizer."""

  def make(tokenizer):
    return TextModel.of_network(Network, None, tokenizer, None)

  return make


@pytest.mark.parametrize("kind", folders.KINDS)
def test_choices_of_a_task(kind, tmp_path, text_model):
  tokenizer = load(tmp_path, kind)
  for choice in ("jumps over", "yes"):
    (pair,) = text_model(tokenizer).encode_pairs([("the fox", f" {choice}")])
    whole = tokenizer.encode(f"the fox {choice}")
    prompt = tokenizer.encode("the fox")
    assert pair == ([*tokenizer.begin, *prompt], whole[len(prompt) :])


@pytest.mark.parametrize("prefix", ["", "hello"])
def test_sentences_about_groups(prefix, tmp_path, text_model):
  tokenizer = load(tmp_path, "byte_level")
  model = text_model(tokenizer)
  pairs = []
  model.log_likelihoods = lambda asked: (
    pairs.extend(asked) or [LogLikelihood(0.0, False, 1)] * len(asked)
  )
  sentences = ("the fox is nice .", "the dog is nice .")
  bias.measure_bias(model, [sentences], prefix=prefix)
  encoded = model.encode_pairs(pairs)
  for (before, ids), sentence in zip(encoded, sentences, strict=True):
    text = f"{prefix} review : {sentence}".lstrip()
    assert [*before, *ids] == [*tokenizer.begin, *tokenizer.encode(text)]
    assert len(before) == len(tokenizer.begin) + len(tokenizer.encode(prefix))


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
  measured.prompts = [prompt]
  # A prefix that leaves no room for the answer is left out, and counted.
  assert evaluate._count_omitted(measured, "Answer well.") == 0
  assert evaluate._count_omitted(measured, "Answer well. " * 400) == 1
  (ids,) = measured.encode("Answer well.", [prompt])
  shown = tokenizer.rust.decode(ids, skip_special_tokens=False)
  end = "<|im_end|>\n<|im_start|>assistant\n"
  between = "\n\n" if refuses else "<|im_end|>\n<|im_start|>user\n"
  role = "user" if refuses else "system"
  first = f"<|im_start|>{role}\nAnswer well.{between}the fox?"
  assert shown == first + end
