"""A tiny policy with random weights for tests of chat."""

from __future__ import annotations

import json

import jax

from instructgpt_jax import configs
from instructgpt_jax.chat import engine
from instructgpt_jax.data import tokenizers as tokenizer_lib
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.models.heads import LanguageModel, init_params

DATA = configs.Data(
  user_tag="U:",
  assistant_tag="A:",
  turn_separator=" ",
  max_prompt_tokens=20,
  max_response_tokens=12,
)
WORDS = "the fox saw a bird and sang for two old owls near one red barn".split()


def make_policy(directory):
  """Returns a model, its parameters and its tokenizer."""
  texts = [" ".join(["U:", *WORDS[i:], "A:", *WORDS[:i]]) for i in range(14)]
  tokenizer = tokenizer_lib.train_tokenizer(
    texts,
    configs.Tokenizer(vocab_size=64, kind="word"),
    directory,
  )
  model = LanguageModel(
    configs.Model(
      num_layers=1,
      d_model=16,
      num_heads=2,
      max_seq_len=32,
      vocab_size=tokenizer.vocab_size,
    )
  )
  params = init_params(model, jax.random.key(0))
  # Random weights at this scale give distributions that are far from flat.
  params = jax.tree.map(lambda x: x * 12 if x.ndim == 2 else x, params)
  return model, params, tokenizer


def make_session(policy, **sampling) -> engine.ChatSession:
  return engine.ChatSession(*policy, DATA, engine.SamplingOptions(**sampling))


def user(text: str) -> list[Turn]:
  return [Turn("user", text)]


def write_prompts(path, texts):
  path.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
  return str(path)


class Echo:
  """A chat session that answers with its input."""

  data = DATA
  max_prompt = 20

  def newest_turns(self, turns):
    if len(turns[-1].text) > 50:
      raise UserError("too long")
    return tuple(turns)

  def check_system_text(self, text):
    del text

  def stream(self, turns, index):
    yield f"{index}:"
    yield "|".join(f"{t.role[0]}.{t.text}" for t in turns)
