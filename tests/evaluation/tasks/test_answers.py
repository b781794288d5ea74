"""Prompts, examples and scores of answers."""

import math

import numpy as np
import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.tasks import (
  answers,
  groups,
  questions,
  registry,
  truthfulqa,
)
from instructgpt_jax.evaluation.tasks.task import Item, Task, write_prompt
from tests.evaluation.tasks import fakes


def load(tmp_path, name, file, content, **settings):
  path = fakes.write(tmp_path / file, content)
  return registry.load(name, path, count=0, seed=0, **settings)


def choose(totals, tokens, right):
  """Scores an item whose choices have these likelihoods."""
  item = Item(
    "0", "q", choices=(" a", " bbbb", " cc"), right=(right,), answer=" a"
  )
  likelihoods = tuple(
    fakes.Likelihood(total, False, count)
    for total, count in zip(totals, tokens, strict=True)
  )
  task = registry.TASKS["hellaswag"]
  return task.score(item, answers.Answer("", likelihoods))


def test_choices_are_compared_by_token_in_total_and_by_character():
  totals, tokens = (-2.0, -3.0, -2.5), (1, 2, 4)
  # By token: -2, -1.5, -0.625. In total: the first. By character: -2, -.75,
  # -1.25.
  expected = {
    "accuracy": 2, "accuracy_total": 0, "accuracy_per_character": 1,
  }  # fmt: skip
  for right in range(3):
    assert choose(totals, tokens, right) == {
      name: float(best == right) for name, best in expected.items()
    }


def test_characters_are_those_that_the_harness_counts():
  """Without a mark at its beginning, an ending may begin with a blank."""
  item = Item("0", "q", choices=("  ab", " abc"), right=(0,))
  likelihoods = tuple(fakes.Likelihood(t, False, 1) for t in (-2.4, -3.0))
  scores = registry.TASKS["hellaswag"].score(
    item, answers.Answer("", likelihoods)
  )
  assert scores["accuracy_per_character"] == 1.0


def test_the_word_of_lambada_counts_if_it_is_greedy(tmp_path):
  asked = load(
    tmp_path, "lambada", "l.jsonl", [{"text": "a b"}, {"text": "c d"}]
  )
  model = fakes.FakeModel(
    total=lambda context, _: -1.0 if "a" in context else -3
  )
  rows = answers.measure(model, asked)
  assert model.pairs == [("a", " b"), ("c", " d")] and not model.prompts
  assert [row.scores["accuracy"] for row in rows] == [0.0, 0.0]
  perplexity = asked.task.corpus["perplexity"]
  counts = np.sum([row.counts["perplexity"] for row in rows], axis=0)
  assert perplexity.value(counts) == pytest.approx(math.exp(2))


def test_mc1_and_mc2(tmp_path):
  asked = load(tmp_path, "truthfulqa", "t.csv", fakes.TRUTHFULQA)
  share = {
    " No, it is cold.": 0.2,
    " No.": 0.4,
    " Yes.": 0.1,
    " It burns.": 0.3,
  }
  model = fakes.FakeModel(
    reply=lambda prompt: " No.", total=lambda _, text: math.log(share[text])
  )
  rows = answers.measure(model, asked)
  assert [row.variant for row in rows] == [
    "qa",
    "instruction",
    "qa_instruction",
  ]
  for row in rows:
    # The best answer is less likely than one incorrect answer.
    assert row.scores == {"mc1": 0.0, "mc2": pytest.approx(0.6)}
    assert row.answer.text == "No."
  assert model.prompts[0] == truthfulqa.QA + "Q: Is ice hot?\nA:"
  assert model.prompts[1].endswith("answer.\n\nQ: Is ice hot?\nA:")
  assert model.stops == [(("\n",), 50)]


def test_a_judge_adds_its_measures(tmp_path):
  asked = load(tmp_path, "truthfulqa", "t.csv", fakes.TRUTHFULQA)
  asked_of_judge = []

  def judge(questions, texts):
    asked_of_judge.extend(zip(questions, texts, strict=True))
    return truthfulqa.to_measures([0.9, 0.9, 0.2], [0.8, 0.1, 0.9])

  model = fakes.FakeModel(reply=lambda prompt: "Yes.")
  rows = answers.measure(model, asked, judges={"truth": judge})
  assert asked_of_judge == [("Is ice hot?", "Yes.")] * 3
  assert [row.scores["true"] for row in rows] == [1, 1, 0]
  assert [row.scores["true_and_informative"] for row in rows] == [1, 0, 0]
  assert next(iter(rows[0].scores)) == "true"
  other = answers.measure(model, asked, judges={"toxicity": judge})
  assert "true" not in other[0].scores


def test_toxicity_is_asked_with_three_instructions(tmp_path):
  asked = load(tmp_path, "realtoxicity", "p.jsonl", [fakes.TOXICITY])
  model = fakes.FakeModel(reply=lambda prompt: f" {len(prompt)} words")
  rows = answers.measure(
    model,
    asked,
    judges={"toxicity": lambda _, texts: {"toxicity": [0.5] * len(texts)}},
  )
  assert [row.variant for row in rows] == ["none", "respectful", "biased"]
  assert model.prompts[0] == "The old man"
  assert model.prompts[1] == groups.INSTRUCTIONS["respectful"] + "The old man"
  assert rows[1].scores["toxicity"] == 0.5


def test_entropy_of_a_choice_between_sentences(tmp_path):
  asked = load(tmp_path, "crows_pairs", "c.csv", fakes.CROWS_PAIRS)

  def total(context, text):
    return math.log(0.75 if "Cats" in text else 0.25) if context else -5.0

  model = fakes.FakeModel(total=total)
  rows = answers.measure(model, asked)
  assert model.pairs[:2] == [("", "Cats lie."), ("", "Dogs lie.")]
  respectful = groups.INSTRUCTIONS["respectful"]
  # The blank belongs to the sentence.
  assert model.pairs[2] == (respectful.rstrip(), " Cats lie.")
  assert rows[0].scores == {"entropy": 1.0, "more_stereotypical_preferred": 0.0}
  expected = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25)
  assert rows[1].scores["entropy"] == pytest.approx(expected)
  assert rows[1].scores["more_stereotypical_preferred"] == 1.0
  assert model.prompts == []


def test_answers_of_drop_may_be_several_spans(tmp_path):
  asked = load(tmp_path, "drop", "d.json", [fakes.DROP])
  for text, exact in (("Bob, Ann", 1.0), ("Ann", 0.0)):
    model = fakes.FakeModel(reply=lambda _, text=text: f" {text}\n")
    scores = answers.measure(model, asked)[2].scores
    assert scores["exact_match"] == exact
    assert scores["f1"] == (1.0 if exact else 0.5)


@pytest.mark.parametrize(
  ("reply", "f1"), [(" Not in background.", (0, 1)), (" Ann", (1, 0))]
)
def test_unanswerable_questions_of_squad(tmp_path, reply, f1):
  asked = load(tmp_path, "squad_v2", "s.json", [fakes.squad()])
  rows = answers.measure(fakes.FakeModel(reply=lambda _: reply), asked)
  assert tuple(row.scores["f1"] for row in rows) == f1


def numbered(count, group=lambda i: ""):
  return [
    Item(str(i), f"Q{i}:", answer=f" {i}", references=(str(i),), group=group(i))
    for i in range(count)
  ]


def make_task(shots=4):
  return Task(
    "t",
    lambda item, answer: {"f1": 0.0},
    instructions={"": "Do it.\n\n"},
    paper_shots=shots,
    max_tokens=5,
  )


def test_examples_are_other_items_drawn_by_seed():
  pool = numbered(50)
  for item in pool:
    drawn = answers.draw_examples(item, pool, 4, 0, "t")
    assert len({e.id for e in drawn} - {item.id}) == 4
    assert drawn == answers.draw_examples(item, pool, 4, 0, "t")
  seeds = {
    tuple(e.id for e in answers.draw_examples(pool[0], pool, 4, seed, "t"))
    for seed in range(5)
  }
  assert len(seeds) == 5


def test_examples_are_of_another_group():
  pool = numbered(200, group=lambda i: "same" if i % 50 else "")
  for item in pool[:60]:
    drawn = answers.draw_examples(item, pool, 3, 0, "t")
    assert all(not e.group or e.group != item.group for e in drawn)
  with pytest.raises(UserError) as caught:
    answers.draw_examples(pool[1], pool, 5, 0, "t")
  assert caught.value.code == "few_examples"


def test_an_item_without_an_answer_is_no_example():
  pool = [*numbered(3), Item("x", "Q:", references=("y",))]
  drawn = answers.draw_examples(Item("z", "Z:"), pool, 3, 0, "t")
  assert {example.id for example in drawn} == {"0", "1", "2"}


def test_a_prompt_with_examples():
  pool = numbered(9)
  asked = registry.Questions(make_task(), pool[:1], pool[1:])
  model = fakes.FakeModel()
  (row,) = answers.measure(model, asked, shots=2, seed=3)
  first, second = answers.draw_examples(pool[0], pool[1:], 2, 3, "t")
  assert row.prompt == (
    f"Do it.\n\nQ{first.id}: {first.id}\n\nQ{second.id}: {second.id}\n\nQ0:"
  )
  assert model.prompts == [row.prompt]


def test_a_task_without_examples_in_the_paper_shows_none():
  assert answers.shots_of(make_task(shots=0), 4) == 0
  assert answers.shots_of(make_task(shots=15), 4) == 4
  assert write_prompt("", [], Item("0", "x")) == "x"


def test_a_chat_template_writes_the_prompt_as_a_turn(tmp_path):
  asked = load(tmp_path, "sst2", "s.tsv", "a film\t1\n")
  model = fakes.FakeModel()
  (row,) = answers.measure(model, asked, chat=True)
  assert row.prompt.startswith("<user>For each snippet")
  assert row.prompt.endswith("Text: a film\nLabel:<reply>")
  # A blank separates template and reply, unless the template ends with one.
  assert model.pairs[0] == (row.prompt, " negative")
  model.chat = lambda turns: turns[0]["content"] + "\nAssistant:\n"
  answers.measure(model, asked, chat=True)
  assert model.pairs[-1][1] == "positive"
  # A sentence without instruction is no turn.
  asked = load(tmp_path, "crows_pairs", "c.csv", fakes.CROWS_PAIRS)
  model = fakes.FakeModel()
  answers.measure(model, asked, chat=True)
  assert model.pairs[0] == ("", "Cats lie.")
  assert model.pairs[2] == (
    f"<user>{groups.INSTRUCTIONS['respectful'].strip()}<reply>", " Cats lie."
  )  # fmt: skip


def test_a_turn_of_a_chat_has_no_cue():
  asked = registry.load("simple_mistakes", "", count=1, seed=0)
  plain, turn = (
    answers.measure(fakes.FakeModel(), asked, chat=chat)[0].prompt
    for chat in (False, True)
  )
  assert plain.endswith("\n\nAnswer:")
  assert turn == f"<user>{plain.removesuffix(asked.task.cue)}<reply>"
  assert "Answer:" not in turn


def test_a_model_without_room_for_an_answer_is_refused():
  items = [Item("0", "x", references=("a",))]
  asked = registry.Questions(make_task(), items)
  with pytest.raises(UserError) as caught:
    answers.measure(fakes.FakeModel(context=5), asked)
  assert caught.value.code == "short_context"


def test_validation_generates_nothing_for_an_absent_judge(tmp_path):
  asked = load(tmp_path, "truthfulqa", "t.csv", fakes.TRUTHFULQA)
  model = fakes.FakeModel()
  (row,) = answers.answer_tasks(model, [asked])["truthfulqa_qa"]
  assert not model.prompts and "answer" not in row.to_json()


def test_prompts_that_are_too_long_are_marked():
  items = [
    Item("0", "x" * 90, references=("a",)),
    Item("1", "y", references=("a",)),
  ]
  asked = registry.Questions(make_task(), items)
  rows = answers.measure(fakes.FakeModel(context=100), asked)
  assert [row.is_cut for row in rows] == [True, False]
  assert rows[0].to_json()["is_cut"] and "is_cut" not in rows[1].to_json()
  assert len(rows[0].prompt) + 5 > 100


def test_answers_that_are_as_long_as_they_may_be_are_marked():
  asked = registry.Questions(make_task(), numbered(3))
  replies = iter(["four", "fives", ""])
  rows = answers.measure(fakes.FakeModel(reply=lambda _: next(replies)), asked)
  assert ["is_long" in row.to_json() for row in rows] == [False, True, False]


def test_blanks_around_a_conversation_do_not_matter():
  assert (
    questions.NOT_IN_BACKGROUND in registry.TASKS["squad_v2"].instructions[""]
  )
  assert questions.DO_NOT_KNOW in registry.TASKS["quac"].instructions[""]
