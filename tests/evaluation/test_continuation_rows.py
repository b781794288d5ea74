"""Rows hold each context once, and a query for each scored token."""

from __future__ import annotations

import numpy as np
import pytest

from instructgpt_jax.evaluation import continuation_rows
from instructgpt_jax.evaluation.continuation_rows import Piece, windows


@pytest.mark.parametrize("size", [2, 3, 7, 50])
@pytest.mark.parametrize("context", [1, 4, 12])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 30])
def test_windows_score_each_token_once(size, context, count):
  tokens = list(range(context + count))
  pieces = windows(tokens[:context], tokens[context:], size)
  assert [t for p in pieces for t in p.ids] == tokens[context:]
  for piece in pieces:
    text = [*piece.context, *piece.ids]
    end = piece.ids[-1] + 1
    # It has all that precedes it, up to a full window.
    assert text == tokens[max(0, end - size - 1) : end]
    assert piece.context and len(text) - 1 <= size


def requests(seed, groups, longest, vocabulary=50):
  rng = np.random.default_rng(seed)

  def draw(count):
    return tuple(rng.integers(1, vocabulary, count).tolist())

  pieces = []
  for _ in range(groups):
    context = draw(rng.integers(1, longest // 2 + 1))
    for _ in range(rng.integers(1, 6)):
      pieces.append(Piece(context, draw(rng.integers(1, longest // 2 + 1))))
  return pieces


def visible(batch, row, query):
  """Returns the tokens that a query attends to, by the rule of segments."""
  segments = batch.segments[row]
  prefix = 0
  places = []
  for place in range(query + 1):
    if segments[place] < 0:
      prefix = segments[place]
    places.append((segments[place], prefix, batch.tokens[row, place]))
  segment, ahead, _ = places[-1]
  return [t for s, _, t in places if s in (segment, ahead)]


@pytest.mark.parametrize("longest, tokens", [(16, 64), (700, 1024), (90, 128)])
def test_queries_see_context_and_continuation(longest, tokens):
  pieces = requests(longest, 40, longest)
  pieces += [pieces[0], Piece(pieces[0].context, pieces[0].ids[:1])]
  scored = set()
  for batch in continuation_rows.batches(
    pieces, max_length=longest, tokens=tokens, shards=2
  ):
    rows, length = batch.tokens.shape
    assert rows % 2 == 0 and length <= longest
    assert batch.queries.shape[1] % batch.chunk == 0
    for index, row, start in batch.members:
      context, ids = pieces[index]
      stop = start + len(ids)
      assert stop <= batch.chunk * batch.chunks
      assert batch.targets[row, start:stop].tolist() == list(ids)
      for offset, query in enumerate(batch.queries[row, start:stop]):
        before = [*context, *ids[:offset]]
        assert visible(batch, row, query) == before
        assert batch.positions[row, query] == len(before) - 1
      assert index not in scored
      scored.add(index)
  assert scored == set(range(len(pieces)))


def test_a_context_is_there_once():
  context = tuple(range(1, 101))
  pieces = [Piece(context, (200 + i, 300 + i, 400 + i)) for i in range(4)]
  (batch,) = continuation_rows.batches(pieces, max_length=512, tokens=512)
  assert (batch.segments != 0).sum() == 100 + 4 * 2


def test_few_shapes():
  pieces = requests(3, 400, 60)
  shapes = {
    batch.tokens.shape
    for batch in continuation_rows.batches(pieces, max_length=2048, tokens=4096)
  }
  assert shapes == {(8, 512)}


def test_many_short_continuations_of_one_context():
  """One token each needs no position, but a query."""
  pieces = [Piece((1,), (i,)) for i in range(2, 2000)]
  batches = list(
    continuation_rows.batches(pieces, max_length=1024, tokens=4096)
  )
  assert sum(len(batch.members) for batch in batches) == len(pieces)
  for batch in batches:
    assert batch.queries.shape == (4, 512)
