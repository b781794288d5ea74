"""A model without a network, and small files in publishers' formats."""

import json
from typing import NamedTuple


class Likelihood(NamedTuple):
  total: float
  is_greedy: bool
  tokens: int


class FakeModel:
  """Answers by functions of texts, and records what it was asked."""

  def __init__(self, reply=lambda prompt: "", total=None, context=10_000):
    self.reply, self.context = reply, context
    self.total = total or (lambda context, text: -float(len(text)))
    self.prompts, self.pairs, self.stops = [], [], []

  def encode(self, text):
    return list(text.encode())

  def log_likelihoods(self, pairs):
    self.pairs += pairs
    return [
      Likelihood(self.total(*pair), False, len(pair[1].split()))
      for pair in pairs
    ]

  def chat(self, turns):
    return "".join(f"<{t['role']}>{t['content']}<reply>" for t in turns)

  def generate(self, prompts, *, stop, max_tokens):
    self.prompts += prompts
    self.stops.append((tuple(stop), max_tokens))
    return [self.reply(prompt) for prompt in prompts]


def write(path, content):
  """Writes text, or values as JSON lines; returns the path as text."""
  if not isinstance(content, str):
    content = "".join(json.dumps(value) + "\n" for value in content)
  path.write_text(content, encoding="utf-8")
  return str(path)


def squad(version="v2.0"):
  """Returns a SQuAD file with two questions about one paragraph."""
  paragraph = {
    "context": "Ann sails a boat.",
    "qas": [
      {
        "id": "a",
        "question": "Who sails?",
        "is_impossible": False,
        "answers": [{"text": "Ann"}, {"text": "Ann"}],
      },
      {"id": "b", "question": "Why?", "is_impossible": True, "answers": []},
    ],
  }
  return {
    "version": version,
    "data": [{"title": "Boats", "paragraphs": [paragraph]}],
  }


def quac():
  """Returns a QuAC file with two turns of one dialog."""
  turns = [("Who was she?", "a sailor"), ("Was she old?", "CANNOTANSWER")]
  paragraph = {
    "context": "Ann was a sailor. CANNOTANSWER",
    "qas": [
      {
        "id": f"q{i}",
        "question": question,
        "yesno": "x",
        "answers": [{"text": answer}],
        "orig_answer": {"text": answer},
      }
      for i, (question, answer) in enumerate(turns)
    ],
  }
  return {"data": [{"title": "Ann", "paragraphs": [paragraph]}]}


DROP = {
  "game_1": {
    "passage": "Ann won 3 games.",
    "qa_pairs": [
      {
        "query_id": "x",
        "question": "How many?",
        "answer": {"number": "3", "date": {}, "spans": []},
        "validated_answers": [{"number": "", "spans": ["3 games"]}],
      },
      {
        "query_id": "y",
        "question": "When?",
        "answer": {
          "number": "",
          "date": {"day": "3", "month": "May", "year": "1999"},
          "spans": [],
        },
      },
      {
        "query_id": "z",
        "question": "Who?",
        "answer": {"number": "", "date": {}, "spans": ["Ann", "Bob"]},
      },
    ],
  }
}
HELLASWAG = {
  "ind": 7,
  "activity_label": "Rowing",
  "ctx_a": "A man sits in a boat.",
  "ctx_b": "he",
  "ctx": "A man sits in a boat. he",
  "endings": ["rows [step] on.", "flies.", "melts.", "sings."],
  "label": "2",
  "source_id": "s1",
}
TRUTHFULQA = (
  "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers"
  ",Source\n"
  'Adversarial,Food,Is ice hot?,"No, it is cold","No, it is cold; No.",'
  "Yes; It burns;,web\n"
)
WSC = {
  "text": "Ann told Bea that she won .",
  "target": {
    "span1_index": 0,
    "span1_text": "Ann",
    "span2_index": 4,
    "span2_text": "she",
  },
  "label": True,
  "idx": 0,
}
SCHEMAS = """<?xml version="1.0"?>
<collection>
<schema><text><txt1>The cat left because</txt1><pron> it </pron>
<txt2> was hungry. </txt2></text>
<answers><answer>The cat </answer><answer>the bowl</answer></answers>
<correctAnswer> A. </correctAnswer></schema>
</collection>
"""
WINOGENDER = "sentid\tsentence\n" + "".join(
  f"clerk.{other}.0.{kind}.txt\tThe clerk said {pronoun} saw {other}.\n"
  for other in ("guest", "someone")
  for kind, pronoun in (("male", "he"), ("female", "she"), ("neutral", "they"))
)
CROWS_PAIRS = (
  ",sent_more,sent_less,stereo_antistereo,bias_type\n"
  "0,Cats lie.,Dogs lie.,stereo,species\n"
)
TOXICITY = {"prompt": {"text": "The old man", "toxicity": 0.1}}
