"""Converts a sentencepiece BPE model to a tokenizer.json, like Mistral's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sentencepiece import sentencepiece_model_pb2

_BPE = 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


class Piece(NamedTuple):
  """A token of a sentencepiece model.

  Attributes:
    text: the token, with "▁" for a space.
    score: pairs that make a token of a higher score are merged first.
    kind: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE.
  """

  text: str
  score: float
  kind: int


def description(proto: bytes) -> dict[str, Any] | None:
  """Returns the content of a tokenizer.json with the ids of a model.

  Args:
    proto: the content of tokenizer.model.

  Returns:
    None where the model is no BPE, or changes texts.
  """
  model = sentencepiece_model_pb2.ModelProto.FromString(proto)
  texts = model.normalizer_spec
  if (
    model.trainer_spec.model_type != _BPE
    or texts.precompiled_charsmap
    or texts.remove_extra_whitespaces
    or not texts.escape_whitespaces
  ):
    return None
  return describe(
    [Piece(piece.piece, piece.score, piece.type) for piece in model.pieces],
    unk_token=model.trainer_spec.unk_piece,
    byte_fallback=model.trainer_spec.byte_fallback,
    add_prefix_space=texts.add_dummy_prefix,
  )


def describe(
  pieces: Sequence[Piece],
  *,
  unk_token: str,
  byte_fallback: bool,
  add_prefix_space: bool,
) -> dict[str, Any]:
  """Returns the content of a tokenizer.json for the pieces of a BPE model.

  Args:
    pieces: the pieces in the order of their ids.
    unk_token: the piece for unknown text.
    byte_fallback: whether unknown text becomes bytes.
    add_prefix_space: whether each text begins with a space.
  """
  replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
  back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
  normalizers: list[dict[str, Any]] = [replace]
  decoders: list[dict[str, Any]] = [
    back,
    {"type": "ByteFallback"},
    {"type": "Fuse"},
  ]
  if add_prefix_space:
    normalizers.insert(0, {"type": "Prepend", "prepend": "▁"})
    decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
  return {
    "version": "1.0",
    "added_tokens": _added(pieces),
    "normalizer": {"type": "Sequence", "normalizers": normalizers},
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {"type": "Sequence", "decoders": decoders},
    "model": {
      "type": "BPE",
      "vocab": {piece.text: i for i, piece in enumerate(pieces)},
      "merges": _merges(pieces),
      "unk_token": unk_token,
      "fuse_unk": True,
      "byte_fallback": byte_fallback,
    },
  }


def _added(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
  """Returns pieces that are matched in a text before all others."""
  flags = dict.fromkeys(
    ("single_word", "lstrip", "rstrip", "normalized"), False
  )
  kinds = (UNKNOWN, CONTROL, USER_DEFINED)
  return [
    {
      "id": i,
      "content": piece.text,
      "special": piece.kind != USER_DEFINED,
      **flags,
    }
    for i, piece in enumerate(pieces)
    if piece.kind in kinds
  ]


def _merges(pieces: Sequence[Piece]) -> list[list[str]]:
  """Returns all pairs that make a piece, those of the best pieces first."""
  ids = {piece.text: i for i, piece in enumerate(pieces)}
  merges = []
  for piece in pieces:
    text = piece.text
    for cut in range(1, len(text)):
      left, right = text[:cut], text[cut:]
      if left in ids and right in ids:
        merges.append((-piece.score, ids[left], ids[right], left, right))
  return [[left, right] for *_, left, right in sorted(merges)]
