"""Real public files, where the checkout has them beside it."""

import pathlib

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import encoding, packing, reading, tokenizers
from instructgpt_jax.data.curation import splits

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(
  not SHARED.is_dir(), reason="../shared/data is not there"
)
DEMONSTRATIONS, RANKINGS, PROMPTS = (
  reading.read_demonstrations,
  reading.read_rankings,
  reading.read_prompts,
)
# path: (reader, format, records, skipped), counted by other means.
FILES = {
  "demonstrations/alpaca/alpaca_small.json": (
    DEMONSTRATIONS, "Alpaca", 1196, 0,
  ),
  "demonstrations/dolly/dolly.json": (DEMONSTRATIONS, "Dolly", 12, 0),
  "demonstrations/self-instruct/seed_tasks.jsonl": (
    DEMONSTRATIONS, "self-instruct seeds", 175, 0,
  ),
  "demonstrations/gsm8k/train.jsonl": (
    DEMONSTRATIONS, "GSM8K questions and answers", 2000, 0,
  ),
  "comparisons/hh-rlhf/harmless-base/test.jsonl.gz": (
    RANKINGS, "Anthropic HH transcripts", 1382, 6,
  ),
  "comparisons/llama-factory/dpo_en_demo.json": (
    RANKINGS, "prompt/chosen/rejected", 195, 0,
  ),
  "comparisons/llmbar/Natural/dataset.json": (
    RANKINGS, "AlpacaEval/LLMBar pairs", 58, 0,
  ),
  "comparisons/pandalm/testset-v1.json": (
    RANKINGS, "PandaLM pairs", 467, 86,
  ),
  "rankings/alpaca_eval/gpt4/annotations.json.gz": (
    RANKINGS, "AlpacaEval/LLMBar pairs", 486, 4,
  ),
  "rankings/open-assistant/en_100_tree.jsonl": (
    RANKINGS, "Open-Assistant trees", 113, 0,
  ),
  "demonstrations/llama-factory/alpaca_en_demo.json": (
    DEMONSTRATIONS, "Alpaca", 626, 0,
  ),
  "demonstrations/t0_p3/ag_news_which_section_choices.jsonl": (
    DEMONSTRATIONS, "own demonstrations", 200, 0,
  ),
  "comparisons/open-instruct/eval_instances_tulu_1.jsonl": (
    PROMPTS, "scored or ranked replies", 633, 0,
  ),
  "prompts/mt_bench/question.jsonl": (PROMPTS, "benchmark questions", 47, 0),
  "prompts/open-assistant/prompt_lottery_en_250_text.jsonl": (
    PROMPTS, "prompts, one JSON text a line", 144, 0,
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_recognised(name):
  path = SHARED / name
  if not path.exists():
    pytest.skip(f"{name} is not there")
  read, form, count, skipped = FILES[name]
  actual, report = read(str(path))
  assert report.files[0].format == form
  assert (len(actual), sum(report.skipped.values())) == (count, skipped)


def test_open_assistant_has_its_published_group_sizes():
  actual, _ = RANKINGS(str(SHARED / "rankings/open-assistant"))
  sizes = np.bincount([len(r.ranks) for r in actual])
  assert sizes.tolist() == [0, 0, 32, 60, 16, 0, 3, 0, 1, 1]
  assert all(min(r.ranks) == 1 for r in actual)
  assert all(len(set(r.ranks)) == len(r.ranks) for r in actual), "no ties"


def test_text_directory_to_rows():
  actual, _ = reading.read_documents(str(SHARED / "text" / "**"))
  parts = splits.split_documents(actual, configs.Data())
  assert all(parts.values())
  texts = [d.text for d in parts["valid"]]
  coder = tokenizers.train_tokenizer(texts, configs.Tokenizer(vocab_size=1000))
  encoded = encoding.encode_documents(texts, coder)
  assert coder.decode(encoded[0]) == texts[0]
  rows = packing.pack_documents(
    encoded, 256, eos_id=coder.eos_id, pad_id=coder.pad_id
  )
  assert (rows["tokens"] == coder.eos_id).sum() == len(texts)
  real = (rows["segments"] > 0).sum()
  assert real == sum(map(len, encoded)) + len(texts)


@pytest.mark.parametrize(
  "name, size",
  [
    ("gpt2", 50_257 + 1),
    ("tiktoken/gpt2.tiktoken", 50_257 + 1),
    ("hf/20B_tokenizer.json", 50_277),
    ("sentencepiece/mistral_tokenizer.model.v1", 32_000 + 1),
    ("sentencepiece/test_model.model", 1_000 + 1),
  ],
)
def test_tokenizers(name, size):
  coder = tokenizers.load_tokenizer(SHARED / "tokenizers" / name)
  assert coder.vocab_size == size and coder.pad_id != coder.eos_id
  if "gpt2" in name:
    # OpenAI's published example, and its end-of-text id.
    assert coder.encode("Hello world") == [15496, 995]
    assert coder.eos_id == 50_256
