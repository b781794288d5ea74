"""A chat session samples the tokens of `generate`, and limits prompts."""

from __future__ import annotations

import dataclasses
import functools
import io

import jax
import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.chat import engine
from instructgpt_jax.chat.row_sampler import Row
from instructgpt_jax.data import packing
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.models.heads import LanguageModel, init_params
from instructgpt_jax.models.sampling import SamplingParams, generate
from instructgpt_jax.runs.progress import Progress
from instructgpt_jax.types import PromptBatch
from tests.chat.toy import WORDS, make_session, user


@pytest.mark.parametrize(
  "sampling",
  [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 1.3, "top_k": 5, "top_p": 0.8},
  ],
)
def test_streamed_tokens_are_those_of_generate(policy, sampling):
  """Padding to a bucket and single decode steps change no token."""
  model, params, tokenizer = policy
  session = make_session(policy, **sampling)
  seed = sampling.pop("seed", 0)
  texts = ["the fox", "a bird sang for two owls near one barn the fox", "red"]
  prompts = [session.encode(user(text)) for text in texts]
  tokens, mask = packing.left_pad(prompts, 20, tokenizer.pad_id)
  program = functools.partial(
    generate,
    model,
    sampling=SamplingParams(
      max_new_tokens=12,
      eos_id=tokenizer.eos_id,
      pad_id=tokenizer.pad_id,
      **sampling,
    ),
  )
  rollout = jax.jit(program)(
    params,
    PromptBatch(tokens=tokens, mask=mask, ids=np.arange(3, dtype=np.int32)),
    jax.random.key(seed),
  )
  drawn = np.asarray(rollout.tokens)[:, 20:]
  for index, ids in enumerate(prompts):
    expected = list(drawn[index][np.asarray(rollout.response_mask)[index]])
    if expected[-1] == tokenizer.eos_id:
      expected.pop()
    assert list(session.sample_tokens(ids, index)) == expected


def test_streamed_text_is_the_decoded_answer(policy):
  session = make_session(policy)
  turns = user("the fox")
  longest = 0
  for index in range(4):
    tokens = list(session.sample_tokens(session.encode(turns), index))
    text = "".join(session.stream(turns, index))
    assert text == policy[2].decode(tokens).removeprefix(" ")
    longest = max(longest, len(text.split()))
  assert longest > 4


def test_answers_depend_on_the_position_not_on_the_batch(policy):
  session = make_session(policy)
  texts = [" ".join(WORDS[: 1 + i % 9]) for i in range(20)]
  prompts = [session.encode(user(text)) for text in texts]
  progress = Progress(20, "", stream=io.StringIO())
  answers = session.answer_batch(prompts, progress, 7)
  assert answers == session.answer_batch(prompts, progress, 3)
  assert {ended for _, ended in answers} == {True, False}
  for index in (0, 8, 19):
    text = "".join(session.stream(user(texts[index]), index))
    assert answers[index][0] == text
    tokens = list(session.sample_tokens(prompts[index], index))
    assert answers[index][1] == (len(tokens) < 12)
  # The same prompt at another position has another answer.
  assert answers[0][0] != answers[9][0] and texts[0] == texts[9]


def test_conversation_keeps_the_newest_turns_that_fit(policy):
  session = make_session(policy)
  assert session.max_prompt == 20
  turns = [Turn("system", "the old")]
  for i in range(6):
    turns += [Turn("user", f"fox {WORDS[i]}"), Turn("assistant", "a bird")]
  turns.append(Turn("user", "owls"))
  newest = session.newest_turns(turns)
  assert newest[0].role == "system" and newest[1].role == "user"
  assert newest[-1].text == "owls"
  assert newest[1:] == tuple(turns[-len(newest) + 1 :])
  size = len(session.encode(newest))
  assert size <= 20
  longer = (turns[0], *turns[-len(newest) - 1 :])
  assert len(session.encode(longer)) > 20
  with pytest.raises(UserError, match="32 tokens, and at most 20 fit"):
    session.newest_turns(user("fox " * 30))


def test_limits_follow_max_seq_len(policy):
  assert make_session(policy, max_tokens=25).max_prompt == 7
  with pytest.raises(UserError, match="do not fit a max_seq_len of 32"):
    make_session(policy, max_tokens=32)


def test_fix_for_a_long_message_is_effective(policy):
  """A shorter answer helps only within the prompt limit."""
  session = make_session(policy, max_tokens=25)
  for words, fix in ((12, "--max_tokens="), (20, "fewer words")):
    with pytest.raises(UserError) as error:
      session.newest_turns(user("fox " * words))
    assert error.value.code == "prompt_too_long"
    assert fix in error.value.fix, words


def test_default_answer_length_leaves_room_for_a_prompt(policy):
  """The limits of an exported model may exceed max_seq_len."""
  data = configs.Data(max_prompt_tokens=512, max_response_tokens=150)
  session = engine.ChatSession(*policy, data, engine.SamplingOptions())
  assert (session.max_prompt, session.max_tokens) == (16, 16)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_rows_are_sampled_by_their_own_settings(policy, scan_layers):
  """Each row has the tokens and scores that it has with other rows."""
  _, _, tokenizer = policy
  config = dataclasses.replace(
    policy[0].config, scan_layers=scan_layers, num_layers=2
  )
  model = LanguageModel(config)
  params = init_params(model, jax.random.key(1))
  params = jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, params)
  session = make_session((model, params, tokenizer))
  rows = [
    Row(session.encode(user(text)), seed, 1, temperature, top_p)
    for text, seed, temperature, top_p in (
      ("the fox", 0, 1.0, 1.0),
      ("a bird sang", 1, 0.0, 1.0),
      ("the fox", 2**40 + 7, 1.5, 0.6),
    )
  ]

  def run(rows):
    steps = session.sampler.sample(
      rows, width=16, slots=24, batch_size=4, top_logprobs=2
    )
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *steps)

  together = run(rows)
  assert together.tokens.shape == (3, 8)
  for i in (2, 1):
    jax.tree.map(
      np.testing.assert_array_equal,
      run(rows[i:]),
      jax.tree.map(lambda x, i=i: x[i:], together),
    )
  assert len({row.tobytes() for row in together.tokens}) == 3
  # Greedy tokens are the most likely ones.
  np.testing.assert_array_equal(together.tokens[1], together.top_ids[1, :, 0])
  # Scores of a whole text equal those of its decoding.
  ids = np.concatenate([rows[0].ids, together.tokens[0]])
  scores = session.sampler.score(ids, width=32)
  np.testing.assert_allclose(scores.logp[-8:], together.logp[0], atol=1e-4)
