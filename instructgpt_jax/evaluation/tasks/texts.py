"""Texts beside a reference: WMT15 French to English, CNN/DM, TL;DR."""

from __future__ import annotations

import html
import os
import re
from collections import Counter
from collections.abc import Iterator

from instructgpt_jax.data.reading import text_files
from instructgpt_jax.evaluation import text_metrics
from instructgpt_jax.evaluation.tasks.records import Record, read_records
from instructgpt_jax.evaluation.tasks.task import (
  Answer,
  CorpusMeasure,
  Item,
  Scores,
  Task,
)

PAIR = "+"  # between the two files of a pair
_WMT15 = (
  f"WMT15's French{PAIR}English files (newsdiscusstest2015-fren-src.fr.sgm"
  f"{PAIR}newsdiscusstest2015-fren-ref.en.sgm, or a sentence a line each), or"
  ' JSON lines {"translation": {"fr", "en"}}'
)
_CNN_DAILYMAIL = "CNN/DM's test set with the columns article and highlights"
_TLDR = (
  "TL;DR's posts with summaries: post (or content, or prompt) and summary (or"
  " label)"
)
_SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)</seg>", re.DOTALL | re.IGNORECASE)


def _read_wmt15(path: str, unused: Counter[str]) -> Iterator[Item]:
  del unused
  if PAIR in path and not os.path.exists(path):
    french, _, english = path.partition(PAIR)
    pairs = _file_pairs(french, english)
  else:
    pairs = (
      (str(record.line), languages.text("fr"), languages.text("en"))
      for record in read_records(path, _WMT15)
      for languages in (
        record.child("translation")
        if "translation" in record.value
        else record,
      )
    )
  for name, source, reference in pairs:
    yield Item(
      name,
      f"French: {source.strip()}\nEnglish:",
      answer=f" {reference.strip()}",
      references=(reference.strip(),),
    )


def _file_pairs(french: str, english: str) -> Iterator[tuple[str, str, str]]:
  sources, references = (_segments(name) for name in (french, english))
  if len(sources) != len(references):
    raise Record({}, english, None, _WMT15).error(
      f"has {len(references)} segments, but {french} has {len(sources)}"
    )
  for index, pair in enumerate(zip(sources, references, strict=True), 1):
    for text, name in zip(pair, (french, english), strict=True):
      if not text.strip():
        raise Record({}, name, None, _WMT15).error(f"segment {index} is blank")
    yield str(index), *pair


def _segments(path: str) -> list[str]:
  """Returns the segments of an SGM file, or the lines of a plain one."""
  if text_files.suffix(path) in (".sgm", ".xml"):
    text = text_files.decode(text_files.unpacked_bytes(path), path)
    segments = _SEGMENT.findall(text)
    return [" ".join(html.unescape(segment).split()) for segment in segments]
  return text_files.read_text(path).rstrip("\n").split("\n")


def _score_translation(item: Item, answer: Answer) -> Scores:
  reference = str(item.references[0])
  return {"sentence_bleu": text_metrics.bleu([answer.text], [reference]) / 100}


BLEU = CorpusMeasure(
  counts=lambda item, answer: text_metrics.bleu_counts(
    [answer.text], [str(item.references[0])]
  )[0],
  value=text_metrics.bleu_of_counts,
)


def _read_cnn_dailymail(path: str, unused: Counter[str]) -> Iterator[Item]:
  del unused
  for record in read_records(path, _CNN_DAILYMAIL):
    yield _summary(
      record, record.text("article").strip(), record.text("highlights")
    )


def _read_tldr(path: str, unused: Counter[str]) -> Iterator[Item]:
  del unused
  for record in read_records(path, _TLDR):
    post = record.text("post", "content", "prompt").strip()
    post = post.removesuffix("TL;DR:").strip()
    yield _summary(record, post, record.text("summary", "label"))


def _summary(record: Record, text: str, summary: str) -> Item:
  return Item(
    str(record.get("id", default=record.place or record.line)),
    f"{text}\n\nTL;DR:",
    answer=f" {' '.join(summary.split())}",
    references=(summary.strip(),),
  )


def _score_summary(item: Item, answer: Answer) -> Scores:
  return {
    "rouge_l": text_metrics.rouge_l(answer.text, str(item.references[0])),
    "words": float(text_metrics.count_words(answer.text)),
  }


WMT15 = Task(
  "wmt15",
  _score_translation,
  _WMT15,
  _read_wmt15,
  instructions={
    "": "Translate the following sentences from French into English.\n\n"
  },
  paper_shots=15,
  max_tokens=128,
  corpus={"bleu": BLEU},
  packages=("sacrebleu",),
)
CNN_DAILYMAIL = Task(
  "cnn_dailymail",
  _score_summary,
  _CNN_DAILYMAIL,
  _read_cnn_dailymail,
  max_tokens=96,
  packages=("rouge_score",),
)
TLDR = Task(
  "tldr",
  _score_summary,
  _TLDR,
  _read_tldr,
  max_tokens=64,
  packages=("rouge_score",),
)
