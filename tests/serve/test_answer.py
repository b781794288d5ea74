"""Answers end at stop strings, and their text is released early enough."""

import random

import pytest

from instructgpt_jax.serve.answer import Answer

END = 0


class Pieces:
  """A tokenizer whose token i has the i-th piece of text."""

  context_ids = ()
  stop_ids = (END,)

  def __init__(self, *pieces):
    self.pieces = ("", *pieces)

  def decode(self, ids):
    return "".join(self.pieces[i] for i in ids)


def collect(tokenizer, tokens, **options):
  """Returns an answer's deltas, up to its end."""
  answer = Answer(tokenizer, **{"max_tokens": len(tokens), **options})
  deltas = []
  for token in tokens:
    deltas.append(answer.push(token, -0.5 * token))
    if answer.finish_reason:
      break
  return answer, deltas


def twin(tokenizer, tokens, stops):
  """Returns the answer's text and why it ended."""
  for count in range(1, len(tokens) + 1):
    text = tokenizer.decode(tokens[:count])
    starts = [text.find(s) for s in stops if s in text]
    if starts:
      return text[: min(starts)], "stop"
    if tokens[count - 1] == END:
      return text, "stop"
  return tokenizer.decode(tokens), "length"


@pytest.mark.parametrize("seed", range(200))
def test_random_answers_end_where_a_search_of_the_whole_text_says(seed):
  rng = random.Random(seed)
  tokenizer = Pieces(*("".join(rng.choices("ab", k=k)) for k in (1, 1, 2, 3)))
  stops = ["".join(rng.choices("ab", k=rng.randint(2, 5))) for _ in range(2)]
  tokens = [rng.randint(0 if i > 5 else 1, 4) for i in range(12)]
  answer, deltas = collect(tokenizer, tokens, stop=stops)
  text, reason = twin(tokenizer, tokens, stops)
  assert "".join(d.text for d in deltas) == text
  assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
  assert deltas[-1].finish_reason == answer.finish_reason == reason
  released = [t for d in deltas for t in d.tokens]
  assert [t.token for t in released] == tokens[: len(released)]
  for i, score in enumerate(released):
    assert score.offset == len(tokenizer.decode(tokens[:i]))
    assert score.offset < len(text) or tokens[i] == END
  if reason == "length":
    assert len(released) == len(tokens)


def test_a_stop_string_over_tokens_holds_back_no_more_than_it_must():
  tokenizer = Pieces("go", " now", " st", "op", " or", "!")
  _, deltas = collect(tokenizer, [1, 2, 3, 5, 3, 4, 6], stop=[" stop"])
  texts = [d.text for d in deltas]
  assert texts == ["go", " now", "", " st or", "", ""]
  assert [t.token for t in deltas[3].tokens] == [3, 5]
  assert deltas[-1].finish_reason == "stop" and not deltas[-1].tokens


def test_lead_and_tail_of_a_template_are_left_out():
  tokenizer = Pieces(" ", "yes", "\n", "no")
  options = dict(lead=" ", tail="\n")
  _, deltas = collect(tokenizer, [1, 2, 3, 4, 3, END], **options)
  assert "".join(d.text for d in deltas) == "yes\nno"
  _, deltas = collect(tokenizer, [1, 2, 3], **options)
  assert "".join(d.text for d in deltas) == "yes\n"
  assert deltas[-1].finish_reason == "length"
