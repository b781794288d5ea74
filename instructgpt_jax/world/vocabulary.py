"""Collects `VOCABULARY`: every word that a text of the world can contain."""

from __future__ import annotations

from instructgpt_jax.world import facts, requests, words

# Words of the registers of `documents` and `replies` that are in no table.
_REGISTERS = (
  "english : lingo . question answer text review rating high low middle not "
  "but and sing says table again one day went to there saw was glad lost now "
  "then too gave some in end at count small big questions it is of has take "
  "reply i like my today who wants ? cares about that yes no , the"
)


def _leaves(value: object) -> set[str]:
  """Collects all words of a string, and of strings in tuples and dicts."""
  if isinstance(value, str):
    return set(value.split())
  if isinstance(value, dict):
    return _leaves(tuple(value)) | _leaves(tuple(value.values()))
  if isinstance(value, tuple):
    return set().union(*map(_leaves, value))
  return set()


def _collect() -> tuple[str, ...]:
  tables = [value for name, value in vars(words).items() if name.isupper()]
  tokens = _leaves(tuple(tables)) | _leaves(_REGISTERS)
  for attribute in facts.ATTRIBUTES:
    tokens |= _leaves((attribute.statements, attribute.questions))
  for relation in requests.RELATIONS:
    tokens |= _leaves((relation.statement, relation.who, relation.what))
  tokens |= _leaves((
    requests.OPENERS,
    tuple(requests.FORMS.values()),
    requests.PREMISES,
    requests.LISTS,
    requests.REPEATS,
    requests.TIMES,
    requests.SHOUTS,
    tuple(requests.SORTS.values()),
    requests.HOWTOS,
    requests.READS,
  ))  # fmt: skip
  return tuple(sorted(word for word in tokens if not word.startswith("{")))


VOCABULARY = _collect()
