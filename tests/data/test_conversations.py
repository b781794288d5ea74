"""Messages, transcripts and pairs of conversations."""

import json

import pytest

from instructgpt_jax.data import reading
from instructgpt_jax.data.records import Demonstration, Prompt, Turn
from instructgpt_jax.errors import UserError


def write(tmp_path, *values):
  path = tmp_path / "x.jsonl"
  path.write_text("".join(json.dumps(v) + "\n" for v in values))
  return str(path)


def read(tmp_path, *values):
  return reading.read_any(write(tmp_path, *values))


def turns(*texts, system=""):
  roles = ("user", "assistant")
  conversation = [Turn(roles[i % 2], t) for i, t in enumerate(texts)]
  return (*([Turn("system", system)] if system else []), *conversation)


def messages(*texts, system=""):
  return [
    {"role": t.role, "content": t.text} for t in turns(*texts, system=system)
  ]


def test_the_last_question_is_the_prompt(tmp_path):
  spec = write(
    tmp_path,
    {"messages": messages("a", "b", "c", system="S")},
    {"messages": messages("only")},
  )
  prompts, _ = reading.read_prompts(spec)
  assert [p.turns for p in prompts] == [
    turns("a", "b", "c", system="S"),
    turns("only"),
  ]
  demonstrations, report = reading.read_demonstrations(spec)
  assert [(d.turns, d.completion) for d in demonstrations] == [
    (turns("a", system="S"), "b")
  ]
  assert report.skipped == {"records without demonstrations": 1}
  (note,) = report.notes
  assert "end with a user's turn" in note and report.notes[note] == 1


@pytest.mark.parametrize(
  "flag", [{"weight": 0}, {"weight": 0.0}, {"train": False},
           {"trainable": False}, {"loss": False}, {"weight": "0"}],
)  # fmt: skip
def test_replies_of_weight_0_are_not_learned(tmp_path, flag):
  conversation = messages("a", "bad", "c", "good", "d", "worse")
  for i in (1, 5):
    conversation[i].update(flag)
  (r,), report = read(tmp_path, {"messages": conversation})
  assert isinstance(r, Demonstration)
  assert (r.turns, r.completion) == (turns("a", "bad", "c"), "good")
  assert not report.unused
  conversation[3].update(flag)
  demonstrations, report = read(tmp_path, {"messages": conversation})
  assert not demonstrations and report.skipped == {"replies of weight 0": 1}


@pytest.mark.parametrize(
  "content, text",
  [
    (["What is ", "it?"], "What is it?"),
    ([{"type": "text", "text": "x"}, None], "x"),
    ([{"type": "text", "text": None}, {"type": "text", "text": "x"}], "x"),
    ([{"type": "text", "text": "x", "image": None}], "x"),
    ([{"type": "input_text", "text": "x"}, "y"], "xy"),
    ([{"text": "x"}], "x"),
  ],
)
def test_content_parts(tmp_path, content, text):
  (r,), _ = read(
    tmp_path,
    {
      "messages": [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
      ]
    },
  )
  assert (r.turns, r.completion) == (turns(text), "a")


IMAGE = "records with images or other parts that are not text"
EMPTY = "conversations with an empty turn"
TOOLS = "conversations with tools or tool calls"


@pytest.mark.parametrize(
  "content, reason",
  [
    ([{"type": "image_url", "image_url": {"url": "x"}}, "what?"], IMAGE),
    ([{"type": "image"}], IMAGE),
    ([{"type": "image", "text": None}, {"type": "text", "text": "w"}], IMAGE),
    ([{"type": "text", "text": "x", "image": "x.png"}], IMAGE),
    ([{"type": "input_audio", "input_audio": {"data": ""}}], IMAGE),
    ([{"type": "tool_result", "content": "x"}], TOOLS),
    ([], EMPTY),
    ([None], EMPTY),
    ([{"type": "text", "text": None}], EMPTY),
    ("", EMPTY),
    (" \n", EMPTY),
    (None, EMPTY),
  ],
)
def test_turns_without_a_text_are_skipped(tmp_path, content, reason):
  records, report = read(
    tmp_path,
    {"messages": messages("q", "a")},
    {
      "messages": [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "a"},
      ]
    },
  )
  assert len(records) == 1 and report.skipped == {reason: 1}


@pytest.mark.parametrize(
  "conversation",
  [
    [
      {"role": "user", "content": "q"},
      {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
      {"role": "tool", "tool_call_id": "c", "content": "3"},
      {"role": "assistant", "content": "It is 3."},
    ],
    [
      {"role": "user", "content": "q"},
      {"role": "assistant", "content": "x", "function_call": {"name": "f"}},
    ],
    [
      {"from": "human", "value": "q"},
      {"from": "function_call", "value": "{}"},
      {"from": "observation", "value": "3"},
      {"from": "gpt", "value": "3"},
    ],
  ],
)
def test_tool_calls_are_skipped(tmp_path, conversation):
  records, report = read(
    tmp_path,
    {"messages": messages("q", "a")},
    {"messages": conversation},
  )
  assert len(records) == 1 and report.skipped == {TOOLS: 1}


@pytest.mark.parametrize(
  "value, reason",
  [
    ({"messages": None}, "conversations without turns"),
    ({"messages": []}, "conversations without turns"),
    ({"messages": messages("", system="S")[:1]},
     "conversations without a user's turn"),
    ({"messages": messages("q", "a") + messages("q", "b")[1:]},
     "replies that do not follow a user's turn"),
    ({"messages": messages("q") + [{"role": "system", "content": "s"}]},
     "replies that do not follow a user's turn"),
    ({"messages": messages("q", "a"), "prompt": "z"},
     "records whose fields contradict each other"),
    ({"messages": messages("q", "a"), "completion": "z"},
     "records whose fields contradict each other"),
  ],
)  # fmt: skip
def test_conversations_that_nobody_can_use(tmp_path, value, reason):
  records, report = read(tmp_path, {"messages": messages("q", "a")}, value)
  assert len(records) == 1 and report.skipped == {reason: 1}


def test_messages_beside_a_prompt_or_a_completion(tmp_path):
  for value in (
    {"messages": messages("q"), "completion": "a"},
    {"messages": messages("q", "a"), "completion": "a"},
    {"messages": messages("q", "a"), "prompt": "q"},
  ):
    (r,), report = read(tmp_path, value)
    assert (r.turns, r.completion) == (turns("q"), "a")
    assert not report.unused


@pytest.mark.parametrize(
  "message, field",
  [
    ({"role": "assistant", "value": "b"}, "messages[1].content"),
    ({"from": "gpt", "content": "b"}, "messages[1].value"),
    ({"role": "assistant"}, "messages[1].content"),
    ({"content": "b"}, "messages[1].role"),
    ({"role": "cat", "content": "b"}, "messages[1].role"),
    ({"role": "assistant", "content": 3}, "messages[1].content"),
    ({"role": "assistant", "content": [3]}, "messages[1].content[0]"),
    ("text", "messages[1]"),
  ],
)
def test_errors_name_the_message(tmp_path, message, field):
  good = {"messages": messages("q", "a")}
  bad = {"messages": [*messages("q"), message]}
  with pytest.raises(UserError) as e:
    read(tmp_path, good, bad)
  assert (e.value.line, e.value.field) == (2, field)
  assert e.value.code in ("missing_field", "unknown_role", "wrong_type")


def test_the_fix_of_mixed_names_renames_them(tmp_path):
  with pytest.raises(UserError) as e:
    read(tmp_path, {"messages": [{"role": "user", "value": "q"}]})
  assert "'value' to 'content'" in e.value.fix


@pytest.mark.parametrize(
  "prompt, expected",
  [
    ("Human: hello", turns("hello")),
    ("\n\nHuman: hello\n\nAssistant:", turns("hello")),
    ("\n\nHuman: hello\n\nAssistant: ", turns("hello")),
    ("Human: hello\nAssistant:", turns("hello")),
    ("Human: a\nAssistant: b\nHuman: c\nAssistant:", turns("a", "b", "c")),
    ("Be nice.\n\nHuman: hello\n\nAssistant:",
     turns("hello", system="Be nice.")),
    ("Be nice.\n\nHuman: hello", turns("hello", system="Be nice.")),
    ("Human: a\n\nb\n\nAssistant:", turns("a\n\nb")),
    ("User: a\n\nAssistant:", turns("a")),
    ("User: a\nAssistant: b\nUser: c\nAssistant:", turns("a", "b", "c")),
    ("User: a feedback form", turns("a feedback form")),
    ("What does Human: mean?", turns("What does Human: mean?")),
    ("Sum up:\n\nHuman: a\n\nAssistant: b",
     turns("Sum up:\n\nHuman: a\n\nAssistant: b")),
  ],
)  # fmt: skip
def test_transcripts(tmp_path, prompt, expected):
  for value in (
    {"prompt": prompt, "completion": "x"},
    {"instruction": prompt, "output": "x"},
    {"question": prompt, "answer": "x"},
    {"prompt": prompt, "chosen": "x", "rejected": "y"},
    {"instruction": prompt, "output_1": "x", "output_2": "y", "label": 1},
    prompt,
  ):
    (r,), _ = read(tmp_path, value)
    assert r.turns == expected


@pytest.mark.parametrize(
  "prompt, code",
  [
    ("Human: hi\n\nAssistant: Sure,", "prompt_end"),
    (messages("a", "b"), "prompt_end"),
    (messages("", system="be brief")[:1], "prompt_end"),
    ("Human: \n\nAssistant:", "empty_turn"),
    (messages(""), "empty_turn"),
    ("", "empty_text"),
    ([], "wrong_type"),
  ],
)
def test_prompts_that_cannot_be_answered(tmp_path, prompt, code):
  with pytest.raises(UserError) as e:
    read(tmp_path, {"prompt": prompt, "completion": "b"})
  assert (e.value.code, e.value.line) == (code, 1)
  assert e.value.field.startswith("prompt")


@pytest.mark.parametrize(
  "end",
  ["<|endoftext|>", "<|endoftext|>\n", " <|endoftext|> ",
   "<|endoftext|><|endoftext|>", "\n<|endoftext|>\n<|endoftext|>\n"],
)  # fmt: skip
def test_end_of_text_is_removed(tmp_path, end):
  (r,), _ = read(tmp_path, {"prompt": "q", "completion": f"a{end}"})
  assert r.completion == "a"
  (r,), _ = read(
    tmp_path,
    {"prompt": "q", "completions": [f"a{end}", "b"], "ranks": [1, 2]},
  )
  assert r.completions == ("a", "b")
  (r,), _ = read(tmp_path, {"prompt": "q", "chosen": f"a{end}",
                            "rejected": "b"})  # fmt: skip
  assert r.completions == ("a", "b")


def test_end_of_text_inside_a_reply_stays(tmp_path):
  (r,), _ = read(tmp_path, {"prompt": "q", "completion": "a<|endoftext|>b"})
  assert r.completion == "a<|endoftext|>b"


def test_end_tokens_of_other_models_are_counted(tmp_path):
  records, report = read(
    tmp_path,
    {"prompt": "q", "completion": "a</s>"},
    {"prompt": "q", "completion": "b"},
  )
  assert [r.completion for r in records] == ["a</s>", "b"]
  ((note, count),) = report.notes.items()
  assert "'</s>'" in note and count == 1


def pair(prompt=None, head=(), system="", **fields):
  """Makes a pair whose replies follow the turns of `head`."""
  value = dict(fields)
  if prompt is not None:
    value["prompt"] = prompt
  for name, text in (("chosen", "x"), ("rejected", "y")):
    value[name] = [
      *messages(*head, system=system),
      {"role": "assistant", "content": text},
    ]
  return value


SYSTEM_AND_Q = messages("q", system="S")


@pytest.mark.parametrize(
  "value, expected",
  [
    (pair(head=["q"], system="S"), turns("q", system="S")),
    (pair(head=["q"]) | {"system": "S"}, turns("q", system="S")),
    (pair(SYSTEM_AND_Q, ["q"]), turns("q", system="S")),
    (pair(SYSTEM_AND_Q, ["q"], "S"), turns("q", system="S")),
    (pair(SYSTEM_AND_Q), turns("q", system="S")),
    (pair("q", ["q"], "S"), turns("q", system="S")),
    # The prompt may be the first or the last question alone.
    (pair("a", ["a", "b", "c"]), turns("a", "b", "c")),
    (pair("c", ["a", "b", "c"]), turns("a", "b", "c")),
    # The conversations may hold the last question alone.
    (pair(messages("a", "b", "c"), ["c"]), turns("a", "b", "c")),
    (pair("q", ["q"], messages=messages("q", "x")), turns("q")),
    ({"conversations": messages("a"), "chosen": "x", "rejected": "y"},
     turns("a")),
    ({"messages": messages("a", "x"), "chosen": "x", "rejected": "y"},
     turns("a")),
    ({"instruction": "q", "input": "i", "chosen": "x", "rejected": "y"},
     turns("q\n\ni")),
    ({"question": "q", "system": "S", "chosen": "x", "rejected": "y"},
     turns("q", system="S")),
    ({"input": "q", "chosen": "x", "rejected": "y"}, turns("q")),
  ],
)  # fmt: skip
def test_prompts_of_pairs(tmp_path, value, expected):
  (r,), report = read(tmp_path, value)
  assert r.turns == expected
  assert (r.completions, r.ranks) == (("x", "y"), (1, 2))
  assert not report.unused


@pytest.mark.parametrize(
  "value, reason",
  [
    (pair("z", ["q"]), "records whose fields contradict each other"),
    (pair(SYSTEM_AND_Q, ["q"], "T"),
     "records whose fields contradict each other"),
    (pair(messages("a", "b", "c"), ["a"]),
     "records whose fields contradict each other"),
    (pair(head=["q"], system="T") | {"system": "S"},
     "records whose fields contradict each other"),
    ({"messages": messages("a", "b"), "chosen": "x", "rejected": "y"},
     "prompts that end with a reply"),
    ({"prompt": messages("a", "b"), "chosen": "x", "rejected": "y"},
     "prompts that end with a reply"),
    ({"prompt": "q", "chosen": "x", "rejected": "y",
      "score_chosen": 1, "score_rejected": 2},
     "records whose fields contradict each other"),
    ({"prompt": "q", "chosen": "x", "rejected": "y",
      "score_chosen": 2, "score_rejected": 2}, "rankings with only ties"),
    (pair("q", ["q"]) | {"rejected": messages("z", "y")},
     "pairs whose prompts differ"),
  ],
)  # fmt: skip
def test_pairs_that_contradict_themselves(tmp_path, value, reason):
  good = pair("q", ["q"])
  records, report = read(tmp_path, good, value)
  assert len(records) == 1 and report.skipped == {reason: 1}


def test_other_prompts_of_a_pair_have_to_agree(tmp_path):
  value = {"prompt": "Question: p", "chosen": "x", "rejected": "y"}
  (r,), report = read(
    tmp_path, {**value, "question": "p"}, {**value, "question": "q"}
  )
  assert r.turns == turns("Question: p") and not report.unused
  assert report.skipped == {"records whose fields contradict each other": 1}


def test_a_reply_that_quotes_a_transcript_stays_whole(tmp_path):
  reply = "Sure.\n\nHuman: a\n\nAssistant: b"
  (r,), _ = read(tmp_path, {"prompt": "q", "chosen": reply, "rejected": "y"})
  assert r.completions == (reply, "y") and isinstance(r.turns[0], Turn)


@pytest.mark.parametrize(
  "completion",
  [
    [{"role": "assistant", "content": "a"}],
    [*messages("q"), {"role": "assistant", "content": "a"}],
    [*SYSTEM_AND_Q, {"role": "assistant", "content": "a"}],
  ],
)
def test_completions_as_messages(tmp_path, completion):
  for prompt in ("q", messages("q")):
    (r,), _ = read(tmp_path, {"prompt": prompt, "completion": completion})
    assert isinstance(r, Demonstration) and r.completion == "a"
    assert r.turns[-1] == Turn("user", "q")
    assert (len(r.turns) == 2) == (completion[0]["role"] == "system")


def test_completions_that_end_with_a_question(tmp_path):
  with pytest.raises(UserError) as e:
    read(tmp_path, {"prompt": "q", "completion": messages("z")})
  assert (e.value.code, e.value.field) == ("completion_end", "completion[0]")
  prompts, _ = read(tmp_path, {"prompt": messages("a", "b", "c")})
  assert isinstance(prompts[0], Prompt)
