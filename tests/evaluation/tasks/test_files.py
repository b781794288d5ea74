"""Files of every task, the prompts made from them, and their refusal."""

import collections
import gzip
import json
import math

import pyarrow as pa
import pyarrow.parquet
import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.tasks import registry, truthfulqa
from instructgpt_jax.evaluation.tasks.task import Answer
from tests.evaluation.tasks import fakes

FILES = {
  "truthfulqa": ("TruthfulQA.csv", fakes.TRUTHFULQA),
  "realtoxicity": ("prompts.jsonl", [fakes.TOXICITY]),
  "winogender": ("all_sentences.tsv", fakes.WINOGENDER),
  "crows_pairs": ("crows.csv", fakes.CROWS_PAIRS),
  "squad_v2": ("dev.json", [fakes.squad()]),
  "drop": ("drop.json", [fakes.DROP]),
  "quac": ("val.json", [fakes.quac()]),
  "hellaswag": ("val.jsonl", [fakes.HELLASWAG]),
  "rte": (
    "dev.tsv",
    "index\tsentence1\tsentence2\tlabel\n"
    '0\tAnn said "hi\tAnn spoke.\tentailment\n',
  ),
  "sst2": ("dev.tsv", "sentence\tlabel\nan old film \t1\n"),
  "wsc": ("val.jsonl", [fakes.WSC]),
  "lambada": ("test.jsonl", [{"text": "He met his old friend"}]),
  "wmt15": ("test.jsonl", [{"translation": {"fr": "Oui.", "en": "Yes."}}]),
  "cnn_dailymail": (
    "test.csv",
    'id,article,highlights\nx,A long story.,"Short\nstory."\n',
  ),
  "tldr": ("test.jsonl", [{"id": "t", "post": "Long.\n", "summary": "Short."}]),
}


def load(tmp_path, name, file=None, content=None, **settings):
  if file is None:
    file, content = FILES[name]
  path = fakes.write(tmp_path / file, content)
  return registry.load(name, path, count=0, seed=0, **settings)


def test_every_task_with_a_file_is_tested():
  with_files = {n for n, task in registry.TASKS.items() if task.expected}
  assert with_files == set(FILES)


@pytest.mark.parametrize(
  ("name", "prompt", "answer"),
  [
    ("hellaswag", "Rowing: A man sits in a boat. He", " melts."),
    ("sst2", "Text: an old film\nLabel:", " positive"),
    (
      "rte",
      'Passage: Ann said "hi\nQuestion: From this passage can one reasonably'
      " conclude that Ann spoke?\nAnswer:",
      " Yes",
    ),
    (
      "wsc",
      "Passage: Ann told Bea that *she* won .\nQuestion: In the passage above,"
      ' what does the pronoun "*she*" refer to?\nAnswer:',
      " Ann",
    ),
    ("lambada", "He met his old", " friend"),
    ("wmt15", "French: Oui.\nEnglish:", " Yes."),
    ("cnn_dailymail", "A long story.\n\nTL;DR:", " Short story."),
    ("tldr", "Long.\n\nTL;DR:", " Short."),
    ("truthfulqa", "Q: Is ice hot?\nA:", ""),
    ("realtoxicity", "The old man", ""),
  ],
)
def test_the_prompt_of_an_item(tmp_path, name, prompt, answer):
  (item,) = load(tmp_path, name).items
  assert (item.prompt, item.answer) == (prompt, answer)
  if item.choices and name not in ("truthfulqa", "lambada"):
    assert item.choices[item.right[0]] == answer


def test_a_question_follows_earlier_ones_of_its_passage(tmp_path):
  first, second = load(tmp_path, "squad_v2").items
  start = "Title: Boats\n\nBackground: Ann sails a boat.\n\nQ: Who sails?\n\nA:"
  assert (first.prompt, first.answer) == (start, " Ann")
  assert second.prompt == f"{start} Ann\n\nQ: Why?\n\nA:"
  assert first.references == ("Ann",)
  assert second.references == ("Not in background.",)
  assert first.group == second.group

  first, second = load(tmp_path, "quac").items
  assert second.prompt == (
    "TITLE: Ann\n\nPARAGRAPH: Ann was a sailor.\n\nQ: Who was she?\n\nA: a"
    " sailor\n\nQ: Was she old?\n\nA:"
  )
  assert second.references == ("I don't know.",)


def test_a_table_of_squad_has_the_prompts_of_the_document(tmp_path):
  rows = [
    {
      "title": "Boats",
      "context": "Ann sails a boat.",
      "id": name,
      "question": question,
      "answers": {"text": answers, "answer_start": []},
    }
    for name, question, answers in (
      ("a", "Who sails?", ["Ann", "Ann"]), ("b", "Why?", []),
    )
  ]  # fmt: skip
  table = load(tmp_path, "squad_v2", "dev.jsonl", rows).items
  assert table == load(tmp_path, "squad_v2").items


def test_answers_of_quac_are_those_of_all_annotators(tmp_path):
  value = fakes.quac()
  first, second = value["data"][0]["paragraphs"][0]["qas"]
  first["answers"] = [{"text": t} for t in ("a sailor", "a sailor", "Ann")]
  second["answers"].append({"text": "yes"})
  one, two = load(tmp_path, "quac", "v.json", [value]).items
  assert one.references == ("a sailor", "a sailor", "Ann")
  score = registry.TASKS["quac"].score
  assert score(one, Answer("Ann")) == {
    "f1": pytest.approx(2 / 3), "exact_match": 1.0,
  }  # fmt: skip
  # Half of the annotators could not answer.
  assert score(two, Answer("yes"))["f1"] == 0.0
  assert score(two, Answer("I don't know"))["f1"] == 1.0


def test_answers_of_drop_are_numbers_dates_or_spans(tmp_path):
  number, date, spans = load(tmp_path, "drop").items
  assert (
    number.prompt == "Passage: Ann won 3 games.\nQuestion: How many?\nAnswer:"
  )
  assert number.references == (("3",), ("3 games",))
  assert date.references == (("3 May 1999",),)
  assert (spans.references, spans.answer) == ((("Ann", "Bob"),), " Ann, Bob")


def test_answers_of_truthfulqa_end_with_a_full_stop(tmp_path):
  (item,) = load(tmp_path, "truthfulqa").items
  assert item.choices == (
    " No, it is cold.", " No.", " Yes.", " It burns.",
  )  # fmt: skip
  assert item.right == (0, 1) and item.extra["best"] == 0
  qa = registry.TASKS["truthfulqa"].instructions["qa"]
  assert qa.startswith("Q: ") and qa.count("\n\n") == 6
  assert truthfulqa.QA == qa


def test_truthfulqa_of_its_own_multiple_choice_file(tmp_path):
  targets = {"No.": 1, "Yes.": 0}
  value = {
    "question": "Is ice hot?",
    "mc1_targets": targets,
    "mc2_targets": targets | {"Not at all.": 1},
  }
  path = fakes.write(tmp_path / "mc_task.json", json.dumps([value, value]))
  items = registry.load("truthfulqa", path, count=0, seed=0).items
  assert items[1].choices == (" No.", " Not at all.", " Yes.")
  listed = {
    key: {"choices": [*value[key]], "labels": [*value[key].values()]}
    for key in ("mc1_targets", "mc2_targets")
  }
  table = pa.Table.from_pylist([{"question": "Is ice hot?", **listed}])
  pa.parquet.write_table(table, tmp_path / "mc.parquet")
  (item,) = registry.load(
    "truthfulqa", str(tmp_path / "mc.parquet"), count=0, seed=0
  ).items
  assert (item.choices, item.right) == (items[0].choices, items[0].right)


def test_mc1_and_mc2_have_their_own_wrong_answers(tmp_path):
  value = {
    "question": "Is ice hot?",
    "mc1_targets": {"No.": 1, "It burns.": 0},
    "mc2_targets": {"Not at all.": 1, "Yes.": 0},
  }
  asked = load(tmp_path, "truthfulqa", "mc_task.json", [value])
  (item,) = asked.items
  shares = {" No.": 0.4, " It burns.": 0.3, " Not at all.": 0.1, " Yes.": 0.9}
  likelihoods = tuple(
    fakes.Likelihood(math.log(shares[text]), False, 1) for text in item.choices
  )
  assert asked.task.score(item, Answer("", likelihoods)) == {
    "mc1": 1.0, "mc2": pytest.approx(0.1),
  }  # fmt: skip


def test_items_that_share_a_text_are_a_group(tmp_path):
  """They are no examples of each other."""
  first, last = fakes.SCHEMAS.split("<collection>")
  schema = last.removesuffix("</collection>\n")
  other = schema.replace("The cat", "the dog")
  content = f"{first}<collection>{other}{schema * 2}</collection>"
  items = load(tmp_path, "wsc", "WSCollection.xml", content).items
  groups = [item.group for item in items]
  assert groups[0] != groups[1] == groups[2]
  rows = [
    {"premise": "A.", "hypothesis": text, "label": 0} for text in ("B", "C")
  ]
  one, two = load(tmp_path, "rte", "val.jsonl", rows).items
  assert one.group == two.group
  (item,) = load(tmp_path, "winogender").items
  assert item.group == "clerk.guest"


def test_pairs_of_sentences(tmp_path):
  questions = load(tmp_path, "winogender")
  (item,) = questions.items
  assert item.choices == (
    "The clerk said he saw guest.", "The clerk said she saw guest.",
  )  # fmt: skip
  # Two neutral ones, and two others about someone.
  assert sorted(questions.unused.values()) == [2, 2]
  (item,) = load(tmp_path, "crows_pairs").items
  assert item.choices == ("Cats lie.", "Dogs lie.")
  assert [*questions.task.instructions] == ["none", "respectful", "biased"]


@pytest.mark.parametrize(
  ("answer", "label", "accuracy"),
  [
    ("ann", True, 1),
    ("It is Ann.", True, 1),
    ("Bea", False, 1),
    ("Bea", True, 0),
    ("Annie", True, 0),
    ("", True, 0),
    ("", False, 1),
  ],
)
def test_the_answer_of_wsc_contains_the_noun(tmp_path, answer, label, accuracy):
  text = "Ann told Bea that she, too, won."
  asked = load(
    tmp_path, "wsc", "v.jsonl", changed(fakes.WSC, text=text, label=label)
  )
  (item,) = asked.items
  assert "Passage: Ann told Bea that *she*, too, won.\n" in item.prompt
  assert item.answer == (" Ann" if label else "")
  assert asked.task.score(item, Answer(answer)) == {"accuracy": accuracy}


def test_winograd_schemas(tmp_path):
  (item,) = load(tmp_path, "wsc", "WSCollection.xml", fakes.SCHEMAS).items
  assert item.prompt == (
    "Passage: The cat left because *it* was hungry.\nQuestion: In the passage"
    ' above, what does the pronoun "*it*" refer to?\nAnswer:'
  )
  assert (item.choices, item.right) == ((" The cat", " the bowl"), (0,))


@pytest.mark.parametrize("form", ["plain", "sgm"])
def test_translations_are_pairs_of_files(tmp_path, form):
  paths = []
  for language, lines in (("fr", ["Oui & non.", "Ah"]), ("en", ["Yes.", "Oh"])):
    if form == "plain":
      path = fakes.write(tmp_path / f"x.{language}", "\n".join(lines) + "\n")
    else:
      segments = "".join(
        f'<seg id="{i}">{line.replace("&", "&amp;")}</seg>\n'
        for i, line in enumerate(lines)
      )
      path = fakes.write(
        tmp_path / f"x.{language}.sgm",
        f"<srcset><doc>{segments}</doc></srcset>",
      )
    paths.append(path)
  first, _ = registry.load("wmt15", "+".join(paths), count=0, seed=0).items
  assert first.prompt == "French: Oui & non.\nEnglish:"
  assert first.references == ("Yes.",)
  with pytest.raises(UserError) as caught:
    short = fakes.write(tmp_path / "short.en", "Yes.\n")
    registry.load("wmt15", f"{paths[0]}+{short}", count=0, seed=0)
  assert (caught.value.code, caught.value.file) == ("bad_task_item", short)


@pytest.mark.parametrize(
  ("name", "prompt"),
  [
    ("hellaswag", "Rowing: A man sits in a boat. He"),
    (
      "sst2",
      "an old film \nQuestion: Is this sentence positive or negative?\nAnswer:",
    ),
    ("rte", 'Ann said "hi\nQuestion: Ann spoke. True or False?\nAnswer:'),
    (
      "wsc",
      "Passage: Ann told Bea that *she* won .\nQuestion: In the passage above,"
      ' does the pronoun "*she*" refer to "*Ann*"?\nAnswer:',
    ),
  ],
)
def test_prompts_of_the_harness(tmp_path, name, prompt):
  questions = load(tmp_path, name, prompts="harness")
  (item,) = questions.items
  assert item.prompt == prompt
  assert questions.task.instructions == {"": ""}
  if name == "hellaswag":
    assert item.choices[0] == " rows on."
  if name in ("rte", "wsc"):
    assert item.answer in (" True", " yes")


@pytest.mark.parametrize(
  ("name", "row"),
  [
    (
      "squad_v2",
      {
        "id": "a",
        "title": "T",
        "context": "C",
        "question": "Q?",
        "answers": {"text": [], "answer_start": []},
      },
    ),
    (
      "drop",
      {
        "passage": "P",
        "question": "Q?",
        "query_id": "a",
        "answers_spans": {"spans": ["x"], "types": ["span"]},
      },
    ),
    (
      "drop",
      {
        "passage": "P",
        "question": "Q?",
        "query_id": "a",
        "answer": {"number": "1", "date": {"day": ""}, "spans": []},
        "validated_answers": {"number": ["", "2"], "spans": [["x"], []]},
      },
    ),
    ("rte", {"premise": "A.", "hypothesis": "B.", "label": 1, "idx": 0}),
    ("sst2", {"sentence": "good", "label": 1, "idx": 0}),
    ("hellaswag", fakes.HELLASWAG | {"label": "2"}),
    ("cnn_dailymail", {"article": "A.", "highlights": "B.", "id": "a"}),
    ("tldr", {"prompt": "Long.\nTL;DR:", "label": " Short."}),
    ("lambada", {"text": "He met him"}),
  ],
)
def test_tables_and_packed_lines(tmp_path, name, row):
  pa.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
  (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
  items = [
    registry.load(name, str(tmp_path / file), count=0, seed=0).items
    for file in ("x.parquet", "x.jsonl.gz")
  ]
  assert items[0] == items[1] and len(items[0]) == 1


def changed(value, **changes):
  return [{**value, **changes}]


def without(value, name):
  return [{k: v for k, v in value.items() if k != name}]


@pytest.mark.parametrize(
  ("name", "file", "content", "line", "field"),
  [
    ("squad_v2", "x.json", [fakes.squad("1.1")], 1, "version"),
    ("squad_v2", "x.json", [fakes.quac()], 1, None),
    ("squad_v2", "x.jsonl", [fakes.HELLASWAG], 1, "answers"),
    ("quac", "x.json", [fakes.squad()], 1, None),
    ("drop", "x.json", [fakes.squad()], 1, "version"),
    ("hellaswag", "x.jsonl", changed(fakes.HELLASWAG, label=4), 1, "label"),
    ("hellaswag", "x.jsonl", changed(fakes.HELLASWAG, label=""), 1, "label"),
    (
      "hellaswag",
      "x.jsonl",
      changed(fakes.HELLASWAG, endings=[1]),
      1,
      "endings",
    ),
    ("hellaswag", "x.jsonl", without(fakes.HELLASWAG, "ctx_a"), 1, "ctx_a"),
    ("hellaswag", "x.jsonl", json.dumps(fakes.HELLASWAG) + "\n[]", 2, None),
    ("hellaswag", "x.jsonl", changed(fakes.HELLASWAG, ctx_b=1), 1, "ctx_b"),
    (
      "drop",
      "x.json",
      [{"g": {"passage": "P", "qa_pairs": [{"answer": {"date": "May"}}]}}],
      1,
      "g.qa_pairs[0].answer.date",
    ),
    (
      "drop",
      "x.jsonl",
      [
        {
          "passage": "P",
          "question": "Q?",
          "answer": {"number": "1"},
          "validated_answers": {"number": ["1"], "spans": []},
        }
      ],
      1,
      "validated_answers",
    ),
    ("lambada", "x.jsonl", [{"text": "word"}], 1, "text"),
    ("lambada", "x.jsonl", [{"texts": "two words"}], 1, "text"),
    ("sst2", "x.tsv", "a film\t0\nno label\n", 2, None),
    ("sst2", "x.tsv", "a film\t2\n", 1, None),
    ("sst2", "x.tsv", "\t1\n", 1, None),
    ("sst2", "x.jsonl", [{"sentence": "a", "label": -1}], 1, "label"),
    ("rte", "x.tsv", "sentence1\tsentence2\tlabel\na\tb\n", 2, None),
    ("rte", "x.tsv", "sentence1\tsentence2\tlabel\na\tb\tmaybe\n", 2, "label"),
    ("rte", "x.tsv", "a film\t0\nold\t1\n", 2, "sentence1"),
    ("wsc", "x.jsonl", changed(fakes.WSC, label="maybe"), 1, "label"),
    ("wsc", "x.xml", "<collection>\n<schema></collection>", 2, None),
    ("wsc", "x.xml", "<a/>", 1, None),
    (
      "wsc",
      "x.xml",
      fakes.SCHEMAS.replace("A.", "C"),
      None,
      "schema[0].correctAnswer",
    ),
    ("winogender", "x.tsv", "sentid\tsentence\nclerk\tHe.\n", 2, "sentid"),
    ("winogender", "x.tsv", "occupation(0)\tsentence\na\tb\n", 2, "sentid"),
    ("crows_pairs", "x.csv", "sent_more,sent_less\na,b\n", 2, "bias_type"),
    ("realtoxicity", "x.jsonl", [{"prompt": "text"}], 1, "prompt"),
    (
      "realtoxicity",
      "x.jsonl",
      [{"prompt": {"text": "a", "toxicity": "much"}}],
      1,
      "prompt.toxicity",
    ),
    ("wmt15", "x.jsonl", [{"translation": {"de": "a"}}], 1, "translation.fr"),
    ("tldr", "x.jsonl", [{"post": "a"}], 1, "summary"),
    (
      "truthfulqa",
      "x.csv",
      "Question,Best Answer\na,b\n",
      2,
      "Correct Answers",
    ),
  ],
)
def test_what_is_no_item_names_line_and_field(
  tmp_path, name, file, content, line, field
):
  with pytest.raises(UserError) as caught:
    load(tmp_path, name, file, content)
  error = caught.value
  assert (error.code, error.line) == ("bad_task_item", line)
  assert field is None or error.field == field
  assert registry.TASKS[name].expected in error.fix


def test_squad_v1_without_a_version_is_refused(tmp_path):
  rows = [{"context": "C", "question": "Q?", "answers": {"text": ["C"]}}] * 2
  with pytest.raises(UserError) as caught:
    load(tmp_path, "squad_v2", "train.jsonl", rows)
  assert caught.value.code == "bad_task_item"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_and_an_empty_file(tmp_path, name):
  file, _ = FILES[name]
  with pytest.raises(UserError) as caught:
    registry.load(name, str(tmp_path / file), count=0, seed=0)
  assert str(tmp_path / file) == caught.value.file
  with pytest.raises(UserError):
    load(tmp_path, name, file, "")


def test_the_header_alone_has_no_items(tmp_path):
  with pytest.raises(UserError) as caught:
    load(tmp_path, "sst2", "x.tsv", "sentence\tlabel\n")
  assert caught.value.code == "no_items"


def test_quotation_marks_of_tab_separated_files(tmp_path):
  (item,) = load(
    tmp_path,
    "rte",
    "x.tsv",
    'sentence1\tsentence2\tlabel\n"Ann" left\t"The ""cat"" ran."\t0\n',
  ).items
  assert item.prompt == (
    'Passage: "Ann" left\nQuestion: From this passage can one reasonably'
    ' conclude that The "cat" ran?\nAnswer:'
  )


def test_prompts_are_drawn_evenly_over_levels_of_toxicity(tmp_path):
  rows = [
    {"prompt": {"text": f"p{i}", "toxicity": 0.9 if i < 5 else 0.1 + i / 1e4}}
    for i in range(100)
  ]
  path = fakes.write(tmp_path / "p.jsonl", rows)
  for count, toxic in ((4, 2), (30, 5)):
    items = registry.load("realtoxicity", path, count=count, seed=1).items
    assert len(items) == count
    assert sum(int(item.id) <= 5 for item in items) == toxic


@pytest.mark.parametrize(
  ("file", "content"), [("x.jsonl", "{0}\n{0}\n"), ("x.json", "[{0}]")]
)
def test_half_of_a_surrogate_pair_is_refused(tmp_path, file, content):
  with pytest.raises(UserError) as caught:
    load(tmp_path, "lambada", file, content.format(r'{"text": "a \ud800"}'))
  assert caught.value.code == "lone_surrogate"


def test_a_count_draws_the_same_items_again(tmp_path):
  texts = [{"text": f"the number {i}"} for i in range(100)]
  path = fakes.write(tmp_path / "l.jsonl", texts)

  def ids(seed):
    questions = registry.load("lambada", path, count=10, seed=seed)
    assert len(questions.pool) == 100
    return [int(item.id) for item in questions.items]

  assert ids(0) == ids(0) == sorted(set(ids(0))) and len(ids(0)) == 10
  assert ids(0) != ids(1)


@pytest.mark.parametrize(
  "spec",
  ["helaswag=a", "lambada", "lambada=", "rte=a,rte=b", "generalisation=a"],
)
def test_a_list_that_names_no_task_is_an_error(spec):
  with pytest.raises(UserError) as caught:
    registry.parse(spec, "--tasks")
  assert (caught.value.code, caught.value.field) == ("bad_task", "--tasks")


def test_a_list_of_tasks():
  spec = " sst2=a.tsv , generalisation,"
  assert registry.parse(spec, "f") == {"sst2": "a.tsv", "generalisation": ""}
  assert registry.parse("", "f") == {}


def test_a_missing_package_is_an_error(monkeypatch):
  monkeypatch.setattr(registry.importlib.util, "find_spec", lambda _: None)
  registry.require_packages(["sst2", "squad_v2"], "--tasks")
  for name, package in (("tldr", "rouge-score"), ("wmt15", "sacrebleu")):
    with pytest.raises(UserError) as caught:
      registry.require_packages([name], "--tasks")
    assert caught.value.code == "missing_package"
    assert f"pip install {package}" in caught.value.fix


def test_columns_are_named_for_tasks_and_variants():
  counts = collections.Counter(c.split("_")[0] for c in registry.COLUMNS)
  assert counts["winogender"] == counts["truthfulqa"] == 3
  assert "squad_v2" in registry.COLUMNS
  assert "winogender_respectful" in registry.COLUMNS
