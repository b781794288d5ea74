"""Records to rows: prompts, packing, padding."""

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import encoding, packing, records
from instructgpt_jax.data.records import Demonstration, Ranking, Turn
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError


class Letters(Tokenizer):
  """Tokenizer with one readable id per character."""

  def __init__(self):
    super().__init__(128, pad_id=0, eos_id=1)

  def encode_batch(self, texts):
    return [[ord(c) for c in t] for t in texts]

  def _decode(self, ids):
    return "".join(map(chr, ids))


LETTERS = Letters()
DATA = configs.Data()


def test_prompt_text():
  turns = (
    Turn("system", "Be brief."),
    Turn("user", "Hi"),
    Turn("assistant", "Hello."),
    Turn("user", "And?"),
  )
  assert records.prompt_text(turns, DATA) == (
    "Be brief.\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant:"
  )
  world = configs.Data(user_tag="U:", assistant_tag="A:", turn_separator=" ")
  assert records.prompt_text(turns[1:2], world) == "U: Hi A:"
  assert records.reply_text(records.completion_text("x")) == "x"


def test_demonstration_ends_with_end_of_text():
  """INVARIANTS 8: the end-of-text token is trained in SFT."""
  demonstration = Demonstration(turns=(Turn("user", "Hi"),), completion="Yo.")
  ((prompt, completion),) = encoding.encode_demonstrations(
    [demonstration], LETTERS, DATA
  )
  assert LETTERS.decode(prompt) == "Human: Hi\n\nAssistant:"
  assert LETTERS.decode(completion) == " Yo."
  assert completion[-1] == LETTERS.eos_id
  ids, weights = encoding.with_loss_weights(prompt, completion)
  assert weights[-1] == 1, "the end-of-text token is trained"
  assert weights.sum() == len(completion)
  assert not weights[: len(prompt)].any()
  _, unmasked = encoding.with_loss_weights(
    prompt, completion, mask_prompt=False
  )
  assert unmasked[0] == 0 and unmasked[1:].all()
  assert ids.tolist() == prompt.tolist() + completion.tolist()
  _, bare = encoding.with_loss_weights(prompt[:0], completion)
  assert bare[0] == 0, "nothing precedes the first token"


def test_long_reply_is_cut_without_end_of_text():
  data = configs.Data(max_response_tokens=4)
  cut, exact = encoding.encode_completions(["abcd", "ab"], LETTERS, data)
  assert LETTERS.decode(cut) == " abc" and LETTERS.eos_id not in cut
  assert exact.tolist() == [*map(ord, " ab"), LETTERS.eos_id]


def test_rankings_keep_their_completions_together():
  rankings = [
    Ranking(turns=(Turn("user", "a"),), completions=("x", "yy"), ranks=(2, 1)),
    Ranking(
      turns=(Turn("user", "b"),), completions=("1", "2", "3"), ranks=(1, 2, 2)
    ),
  ]
  encoded = encoding.encode_rankings(rankings, LETTERS, DATA)
  texts = [[LETTERS.decode(c) for c in e.completions] for e in encoded]
  assert texts == [[" x", " yy"], [" 1", " 2", " 3"]]
  assert [e.ranks for e in encoded] == [(2, 1), (1, 2, 2)]
  assert all(c[-1] == LETTERS.eos_id for e in encoded for c in e.completions)


def _examples(lengths):
  start = 10
  out = []
  for n in lengths:
    ids = np.arange(start, start + n, dtype=np.int32)
    out.append((ids, (ids % 3 == 0).astype(np.float32)))
    start += n
  return out


def test_packing_keeps_every_example_whole():
  rng = np.random.RandomState(0)
  examples = _examples(rng.randint(1, 17, size=200))
  rows = packing.pack_examples(examples, 16, pad_id=0)
  actual = []
  for r in range(len(rows["tokens"])):
    for s in range(1, rows["segments"][r].max() + 1):
      at = rows["segments"][r] == s
      assert np.all(np.diff(np.flatnonzero(at)) == 1), "in one piece"
      assert rows["positions"][r, at].tolist() == list(range(at.sum()))
      actual.append(
        (rows["tokens"][r, at].tolist(), rows["weights"][r, at].tolist())
      )
    padding = rows["segments"][r] == 0
    assert not rows["weights"][r, padding].any()
    assert not rows["tokens"][r, padding].any()
  expected = [(ids.tolist(), w.tolist()) for ids, w in examples]
  assert sorted(actual) == sorted(expected)
  total = sum(len(ids) for ids, _ in examples)
  assert len(rows["tokens"]) <= 1.05 * total / 16 + 1, "rows are well filled"
  again = packing.pack_examples(examples, 16, pad_id=0)
  assert all(np.array_equal(rows[k], again[k]) for k in rows)


def test_packing_is_a_best_fit():
  rows = packing.pack_examples(_examples([5, 3, 6, 2]), 8, pad_id=0)
  assert (rows["segments"] > 0).all() and rows["tokens"].shape == (2, 8)
  # The 3 has to go where nothing is left, not where most is left.
  rows = packing.pack_examples(_examples([7, 6, 3, 2, 2]), 10, pad_id=0)
  assert (rows["segments"] > 0).all() and rows["tokens"].shape == (2, 10)


def test_error_for_an_example_longer_than_a_row_names_the_flag():
  for layout in (packing.pack_examples, packing.pad_examples):
    with pytest.raises(UserError) as e:
      layout(_examples([9]), 8, pad_id=0)
    assert "max_response_tokens" in str(e.value)


def test_unpacked_rows():
  rows = packing.pad_examples(_examples([2, 4]), 4, pad_id=0)
  assert rows["tokens"].tolist() == [[10, 11, 0, 0], [12, 13, 14, 15]]
  assert rows["segments"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
  assert rows["positions"].tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]


def test_document_rows():
  """Documents are whole if they fit; a longer one uses several segments."""
  rows = packing.pack_documents(
    [[5, 6], [], [8], [9, 10, 11, 12, 13]], 5, eos_id=1, pad_id=0
  )
  assert rows["tokens"].tolist() == [
    [5, 6, 1, 8, 1], [9, 10, 11, 12, 13], [1, 0, 0, 0, 0],
  ]  # fmt: skip
  assert rows["segments"].tolist() == [
    [1, 1, 1, 2, 2], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0],
  ]  # fmt: skip
  assert rows["positions"].tolist() == [
    [0, 1, 2, 0, 1], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0],
  ]  # fmt: skip
  assert rows["weights"].tolist() == [
    [0, 1, 1, 0, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0],
  ]  # fmt: skip


def test_document_rows_of_nothing():
  rows = packing.pack_documents([[]], 4, eos_id=1, pad_id=0)
  assert all(v.shape == (0, 4) for v in rows.values())


def test_padding():
  tokens, mask = packing.left_pad(
    [np.array([1, 2]), np.array([], np.int32)], 3, 9
  )
  assert tokens.tolist() == [[9, 1, 2], [9, 9, 9]]
  assert mask.tolist() == [[False, True, True], [False] * 3]
  with pytest.raises(ValueError):
    packing.left_pad([np.arange(4)], 3, 9)


def test_few_lengths_hold_all_and_waste_little():
  rng = np.random.default_rng(0)
  needed = rng.integers(300, 700, 500)
  for max_padding, max_count in (
    (0.5, 9),
    (0.1, 9),
    (0.02, 9),
    (0.02, 3),
    (0.0, 1),
  ):
    lengths = packing.choose_bucket_lengths(
      needed,
      max_padding=max_padding,
      max_count=max_count,
      lengths_per_octave=64,
    )
    assert lengths == tuple(sorted(set(lengths))) and len(lengths) <= max_count
    assert all(n % 8 == 0 for n in lengths) and lengths[-1] == 704
    tokens = sum(packing.smallest_bucket(n, lengths) for n in needed.tolist())
    assert (
      len(lengths) == max_count or tokens <= (1 + max_padding) * needed.sum()
    )

  def few(needed, per_octave):
    return packing.choose_bucket_lengths(
      needed, max_padding=0.1, max_count=2, lengths_per_octave=per_octave
    )

  assert few([500] * 9 + [40] * 9, 32) == (40, 504)
  assert few([500] * 9 + [40] * 9, 8) == (40, 512)
  assert few([0], 8) == (8,) and few([128], 8) == (128,)
  assert few([129, 140], 8) == few([141, 144], 8) == (144,)


def test_buckets():
  assert [packing.smallest_bucket(n, (8, 32, 16)) for n in (1, 8, 9, 32)] == [
    8, 8, 16, 32,
  ]  # fmt: skip
  with pytest.raises(ValueError):
    packing.smallest_bucket(33, (8, 16, 32))
  for longest in (1, 8, 100, 1000):
    sizes = packing.bucket_lengths(longest)
    assert (
      len(sizes) <= 4 and packing.smallest_bucket(longest, sizes) < longest + 8
    )
