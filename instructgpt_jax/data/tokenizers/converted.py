"""Converts a sentencepiece BPE model to a tokenizer.json, like Mistral's."""

from __future__ import annotations

from typing import Any

from sentencepiece import sentencepiece_model_pb2

_BPE = 2
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


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
  replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
  back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
  normalizers: list[dict[str, Any]] = [replace]
  decoders: list[dict[str, Any]] = [
    back,
    {"type": "ByteFallback"},
    {"type": "Fuse"},
  ]
  if texts.add_dummy_prefix:
    normalizers.insert(0, {"type": "Prepend", "prepend": "▁"})
    decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
  return {
    "version": "1.0",
    "added_tokens": _added(model),
    "normalizer": {"type": "Sequence", "normalizers": normalizers},
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {"type": "Sequence", "decoders": decoders},
    "model": {
      "type": "BPE",
      "vocab": {piece.piece: i for i, piece in enumerate(model.pieces)},
      "merges": _merges(model),
      "unk_token": model.trainer_spec.unk_piece,
      "fuse_unk": True,
      "byte_fallback": model.trainer_spec.byte_fallback,
    },
  }


def _added(model: Any) -> list[dict[str, Any]]:
  """Returns pieces that are matched in a text before all others."""
  flags = dict.fromkeys(
    ("single_word", "lstrip", "rstrip", "normalized"), False
  )
  kinds = (_UNKNOWN, _CONTROL, _USER_DEFINED)
  return [
    {
      "id": i,
      "content": piece.piece,
      "special": piece.type != _USER_DEFINED,
      **flags,
    }
    for i, piece in enumerate(model.pieces)
    if piece.type in kinds
  ]


def _merges(model: Any) -> list[list[str]]:
  """Returns all pairs that make a piece, those of the best pieces first."""
  ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
  merges = []
  for piece in model.pieces:
    text = piece.piece
    for cut in range(1, len(text)):
      left, right = text[:cut], text[cut:]
      if left in ids and right in ids:
        merges.append((-piece.score, ids[left], ids[right], left, right))
  return [[left, right] for *_, left, right in sorted(merges)]
