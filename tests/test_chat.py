"""Talking to a model: the same draws as in training, and safe input."""

from __future__ import annotations

import functools
import io
import json
import os
import threading

import jax
import numpy as np
import pytest

from instructgpt_jax import chat, configs
from instructgpt_jax.data import packing
from instructgpt_jax.data import tokenizers as tokenizer_lib
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.models.sampling import generate
from instructgpt_jax.models.transformer import LanguageModel, init_params
from instructgpt_jax.runs.progress import Progress
from instructgpt_jax.types import PromptBatch

DATA = configs.Data(
  user_tag="U:",
  assistant_tag="A:",
  turn_separator=" ",
  max_prompt_tokens=20,
  max_response_tokens=12,
)
WORDS = "the fox saw a bird and sang for two old owls near one red barn".split()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
  texts = [" ".join(["U:", *WORDS[i:], "A:", *WORDS[:i]]) for i in range(14)]
  tokenizer = tokenizer_lib.train_tokenizer(
    texts,
    configs.Tokenizer(vocab_size=64, kind="word"),
    tmp_path_factory.mktemp("tokenizer"),
  )
  model = LanguageModel(
    configs.Model(
      num_layers=1,
      d_model=16,
      num_heads=2,
      max_seq_len=32,
      vocab_size=tokenizer.vocab_size,
    )
  )
  params = init_params(model, jax.random.key(0))
  # Random weights at this scale give distributions that are far from flat.
  params = jax.tree.map(lambda x: x * 12 if x.ndim == 2 else x, params)
  return model, params, tokenizer


def make_talker(policy, **sampling) -> chat.Talker:
  return chat.Talker(*policy, DATA, chat.Sampling(**sampling))


def user(text: str) -> list[Turn]:
  return [Turn("user", text)]


@pytest.mark.parametrize(
  "sampling",
  [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 1.3, "top_k": 5, "top_p": 0.8},
  ],
)
def test_streamed_tokens_are_those_of_generate(policy, sampling):
  """Padding to a bucket and stepping by hand change no draw."""
  model, params, tokenizer = policy
  talker = make_talker(policy, **sampling)
  seed = sampling.pop("seed", 0)
  texts = ["the fox", "a bird sang for two owls near one barn the fox", "red"]
  prompts = [talker.encode(user(text)) for text in texts]
  tokens, mask = packing.left_pad(prompts, 20, tokenizer.pad_id)
  program = functools.partial(
    generate,
    model,
    max_new_tokens=12,
    eos_id=tokenizer.eos_id,
    pad_id=tokenizer.pad_id,
    **sampling,
  )
  rollout = jax.jit(program)(
    params,
    PromptBatch(tokens=tokens, mask=mask, ids=np.arange(3, dtype=np.int32)),
    jax.random.key(seed),
  )
  drawn = np.asarray(rollout.tokens)[:, 20:]
  for index, ids in enumerate(prompts):
    wanted = list(drawn[index][np.asarray(rollout.response_mask)[index]])
    if wanted[-1] == tokenizer.eos_id:
      wanted.pop()
    assert list(talker.tokens(ids, index)) == wanted


def test_streamed_text_is_the_decoded_answer(policy):
  talker = make_talker(policy)
  turns = user("the fox")
  longest = 0
  for index in range(4):
    tokens = list(talker.tokens(talker.encode(turns), index))
    text = "".join(talker.stream(turns, index))
    assert text == policy[2].decode(tokens).removeprefix(" ")
    longest = max(longest, len(text.split()))
  assert longest > 4


def test_answers_depend_on_the_place_only_not_on_the_batch(policy):
  talker = make_talker(policy)
  texts = [" ".join(WORDS[: 1 + i % 9]) for i in range(20)]
  prompts = [talker.encode(user(text)) for text in texts]
  progress = Progress(20, "", stream=io.StringIO())
  found = talker.answer(prompts, progress, 7)
  assert found == talker.answer(prompts, progress, 3)
  assert {ended for _, ended in found} == {True, False}
  for index in (0, 8, 19):
    text = "".join(talker.stream(user(texts[index]), index))
    assert found[index][0] == text
    tokens = list(talker.tokens(prompts[index], index))
    assert found[index][1] == (len(tokens) < 12)
  # The same prompt at another place draws something else.
  assert found[0][0] != found[9][0] and texts[0] == texts[9]


def test_conversation_keeps_the_newest_turns_that_fit(policy):
  talker = make_talker(policy)
  assert talker.max_prompt == 20
  turns = [Turn("system", "the old")]
  for i in range(6):
    turns += [Turn("user", f"fox {WORDS[i]}"), Turn("assistant", "a bird")]
  turns.append(Turn("user", "owls"))
  kept = talker.fitting(turns)
  assert kept[0].role == "system" and kept[1].role == "user"
  assert kept[-1].text == "owls"
  assert kept[1:] == tuple(turns[-len(kept) + 1 :])
  size = len(talker.encode(kept))
  assert size <= 20
  longer = (turns[0], *turns[-len(kept) - 1 :])
  assert len(talker.encode(longer)) > 20
  with pytest.raises(UserError, match="32 tokens, and at most 20 fit"):
    talker.fitting(user("fox " * 30))


def test_limits_follow_the_context(policy):
  assert make_talker(policy, max_tokens=25).max_prompt == 7
  with pytest.raises(UserError, match="do not fit a context of 32"):
    make_talker(policy, max_tokens=32)


class _Echo:
  """Answers with what it was given to read."""

  data = DATA
  max_prompt = 20

  def fitting(self, turns):
    if len(turns[-1].text) > 50:
      raise UserError("too long")
    return tuple(turns)

  def require_system(self, text):
    del text

  def stream(self, turns, index):
    yield f"{index}:"
    yield "|".join(f"{t.role[0]}.{t.text}" for t in turns)


def _talk(lines, **settings) -> list[str]:
  out = io.StringIO()
  lines = iter(lines)

  def read(prompt):
    del prompt
    for line in lines:
      if isinstance(line, BaseException):
        raise line
      return line
    raise EOFError

  chat.talk(_Echo(), read=read, out=out, **settings)
  return out.getvalue().splitlines()


def test_talk_remembers_and_forgets():
  shown = _talk(["hi", "", "you", "/reset", "new"], system="be kind")
  assert shown[0] == "0:s.be kind|u.hi"
  assert shown[1] == "1:s.be kind|u.hi|a.0:s.be kind|u.hi|u.you"
  assert shown[2:4] == ["(forgotten)", "2:s.be kind|u.new"]
  assert _talk(["a", "b"], keep=False)[:2] == ["0:u.a", "1:u.b"]


def test_talk_goes_on_after_a_message_that_is_too_long():
  shown = _talk(["hi", "x" * 99, "you", "/quit", "unread"])
  assert shown == ["0:u.hi", "error: too long", "1:u.hi|a.0:u.hi|u.you"]


def test_talk_ends_at_an_interrupt():
  assert _talk([KeyboardInterrupt(), "unread"]) == []


def test_interrupt_stops_an_answer_only():
  class Slow(_Echo):
    def stream(self, turns, index):
      yield f"{len(turns)}"
      if index == 0:
        raise KeyboardInterrupt
      yield "!"

  out, lines = io.StringIO(), iter(["a", "b", "/quit"])
  chat.talk(Slow(), read=lambda _: next(lines), out=out)
  assert out.getvalue().splitlines() == ["1 (stopped)", "3!"]


@pytest.mark.parametrize(
  "line", ["/help", " /help ", "/halp", "/", "/?", "/help me", "/Quit", "/é x"]
)
def test_commands_are_never_sent(line):
  shown = _talk([line, "you"])
  assert len(shown) == 2
  assert "/reset" in shown[0] and "/quit" in shown[0]
  assert shown[0].startswith("/reset") == (line.strip() == "/help")
  assert shown[1] == "0:u.you"


@pytest.mark.parametrize("line", [" /halp", "/etc/hosts is what?", "a /reset"])
def test_messages_with_slashes_are_sent(line):
  assert _talk([line]) == [f"0:u.{line.strip()}"]


@pytest.mark.parametrize("line", ["caf\udce9", "\ud800", "h\0i\0"])
def test_what_is_no_text_is_told_and_not_sent(line):
  shown = _talk(["hi", line, "you"])
  assert shown[0] == "0:u.hi" and shown[1].startswith("error: ")
  assert shown[2:] == ["1:u.hi|a.0:u.hi|u.you"]


def test_terminal_is_not_commanded_by_a_model():
  shown = _talk(["\x1b[2J\x9b31mred\x07"])
  assert shown == ["0:u.�[2J�31mred�"]
  assert chat.printable("a\nb\tc é 短") == "a\nb\tc é 短"


def _write_prompts(path, texts):
  path.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
  return str(path)


def test_file_is_answered_in_order_and_long_prompts_are_counted(
  policy, tmp_path
):
  texts = ["red barn near one owl", "fox", "fox " * 40, "the"]
  prompts = _write_prompts(tmp_path / "p.jsonl", texts)
  output = tmp_path / "answers.jsonl"
  counts = chat.answer_file(
    prompts, str(output), lambda: make_talker(policy), batch_size=2
  )
  assert counts == (3, 1)
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert [row["prompt"] for row in rows] == texts
  assert rows[2]["completion"] is None and "at most 20" in rows[2]["skipped"]
  for row in (rows[0], rows[1], rows[3]):
    assert set(row) == {"prompt", "completion", "ended"}
    assert isinstance(row["completion"], str)
    assert isinstance(row["ended"], bool)


def test_prompts_are_written_as_they_were_given(policy, tmp_path):
  turns = [
    {"role": "user", "content": "the fox"},
    {"role": "assistant", "content": "a bird"},
    {"role": "user", "content": "owls"},
  ]
  records = ["the owls", turns, "U: fox A:"]
  prompts = _write_prompts(tmp_path / "p.jsonl", records)
  output = tmp_path / "answers.jsonl"
  talker = make_talker(policy, temperature=0.0)
  chat.answer_file(prompts, str(output), lambda: talker, system="red")
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert [row["prompt"] for row in rows] == records
  # The last turn is answered, after the system's turn and those before it.
  turns = [
    Turn("system", "red"),
    *(Turn(t["role"], t["content"]) for t in turns),
  ]
  assert rows[1]["completion"] == "".join(talker.stream(turns, 1))


def test_prompts_and_answers_go_through_pipes(policy, tmp_path):
  for name in ("in.jsonl", "out"):
    os.mkfifo(tmp_path / name)
  answers: list[str] = []
  line = json.dumps({"prompt": "fox"}) + "\n"
  threads = [
    threading.Thread(
      target=lambda: (tmp_path / "in.jsonl").write_text(2 * line), daemon=True
    ),
    threading.Thread(
      target=lambda: answers.extend(
        (tmp_path / "out").read_text().splitlines()
      ),
      daemon=True,
    ),
  ]
  for thread in threads:
    thread.start()
  counts = chat.answer_file(
    str(tmp_path / "in.jsonl"),
    str(tmp_path / "out"),
    lambda: make_talker(policy),
  )
  threads[1].join(10)
  assert counts == (2, 0)
  assert [json.loads(line)["prompt"] for line in answers] == ["fox", "fox"]
  assert (tmp_path / "out").is_fifo()


def test_an_output_that_is_a_link_replaces_its_target(policy, tmp_path):
  prompts = _write_prompts(tmp_path / "p.jsonl", ["fox"])
  (tmp_path / "real").write_text("old")
  (tmp_path / "link").symlink_to("real")
  chat.answer_file(
    prompts,
    str(tmp_path / "link"),
    lambda: make_talker(policy),
    overwrite=True,
  )
  assert (tmp_path / "link").is_symlink()
  assert json.loads((tmp_path / "real").read_text())["prompt"] == "fox"


def test_prompts_that_are_all_too_long_are_an_error(policy, tmp_path):
  prompts = _write_prompts(tmp_path / "p.jsonl", ["fox " * 12] * 2)
  output = tmp_path / "answers.jsonl"
  with pytest.raises(UserError) as caught:
    chat.answer_file(
      prompts, str(output), lambda: make_talker(policy, max_tokens=25)
    )
  assert caught.value.code == "prompt_too_long"
  assert "--max_tokens=18 " in caught.value.fix
  assert not output.exists()
  assert make_talker(policy, max_tokens=18).max_prompt == 14


def test_a_system_text_that_leaves_no_room_is_named(policy, tmp_path):
  talker = make_talker(policy)
  talker.require_system("")
  talker.require_system("fox")
  prompts = _write_prompts(tmp_path / "p.jsonl", ["fox"])
  output = tmp_path / "answers.jsonl"
  with pytest.raises(UserError) as caught:
    chat.answer_file(prompts, str(output), lambda: talker, system="fox " * 99)
  assert caught.value.code == "prompt_too_long"
  assert caught.value.field == "--system"
  assert not output.exists()


def test_a_system_text_that_the_template_refuses_is_named(policy, tmp_path):
  """The fix of another command would name a flag that this one lacks."""
  talker, encode = make_talker(policy), chat.Talker.encode

  def refuses(turns):
    if turns[0].role == "system":
      raise UserError("no system", file="t", fix="f", code="template_refuses")
    return encode(talker, turns)

  talker.encode = refuses
  with pytest.raises(UserError) as caught:
    talker.require_system("fox")
  assert (caught.value.field, caught.value.file) == ("--system", None)
  prompts = tmp_path / "p.jsonl"
  turns = [{"role": r, "content": "fox"} for r in ("system", "user")]
  lines = [{"prompt": "fox"}, {"prompt": turns}]
  prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
  with pytest.raises(UserError) as caught:
    chat.answer_file(
      str(prompts), str(tmp_path / "answers.jsonl"), lambda: talker
    )
  assert caught.value.file == f"{prompts}:2"
  assert "chat_template" not in caught.value.fix
  assert not (tmp_path / "answers.jsonl").exists()


def test_a_fix_for_a_long_message_names_what_helps(policy):
  """Fewer tokens for the answer help as long as the prompt limit allows."""
  talker = make_talker(policy, max_tokens=25)
  for words, fix in ((12, "--max_tokens="), (20, "fewer words")):
    with pytest.raises(UserError) as caught:
      talker.fitting(user("fox " * words))
    assert caught.value.code == "prompt_too_long"
    assert fix in caught.value.fix, words


def test_an_answer_leaves_room_for_a_prompt(policy):
  """Limits that do not fit the context, as an exported model has them."""
  data = configs.Data(max_prompt_tokens=512, max_response_tokens=150)
  talker = chat.Talker(*policy, data, chat.Sampling())
  assert (talker.max_prompt, talker.max_tokens) == (16, 16)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(
  policy, tmp_path, temperature, value
):
  model, params, tokenizer = policy
  broken = jax.tree.map(lambda x: x.at[0].set(value), params)
  sampling = chat.Sampling(temperature=temperature)
  talker = chat.Talker(model, broken, tokenizer, DATA, sampling)
  with pytest.raises(UserError) as caught:
    list(talker.stream(user("the fox")))
  assert caught.value.code == "not_finite"
  prompts = _write_prompts(tmp_path / "p.jsonl", ["the fox"])
  output = tmp_path / "answers.jsonl"
  with pytest.raises(UserError) as caught:
    chat.answer_file(prompts, str(output), lambda: talker)
  assert caught.value.code == "not_finite" and not output.exists()


def _unloaded():
  raise AssertionError("the model was loaded before the files were looked at")


def test_existing_output_is_kept_unless_told(policy, tmp_path):
  prompts = _write_prompts(tmp_path / "p.jsonl", ["fox"])
  output = tmp_path / "answers.jsonl"
  output.write_text("old")
  with pytest.raises(UserError) as caught:
    chat.answer_file(prompts, str(output), _unloaded)
  assert caught.value.code == "output_exists"
  assert output.read_text() == "old"
  (tmp_path / "link").symlink_to("p.jsonl")
  for same in (prompts, str(tmp_path / "link")):
    with pytest.raises(UserError) as caught:
      chat.answer_file(prompts, same, _unloaded, overwrite=True)
    assert (caught.value.code, caught.value.file) == ("output_is_input", same)
  with pytest.raises(UserError) as caught:
    chat.answer_file(prompts, str(tmp_path), _unloaded, overwrite=True)
  assert caught.value.code == "not_a_file"

  class Broken(chat.Talker):
    def answer(self, *unused):
      raise KeyboardInterrupt

  broken = Broken(*policy, DATA, chat.Sampling())
  with pytest.raises(KeyboardInterrupt):
    chat.answer_file(prompts, str(output), lambda: broken, overwrite=True)
  assert output.read_text() == "old"
  chat.answer_file(
    prompts, str(output), lambda: make_talker(policy), overwrite=True
  )
  assert json.loads(output.read_text())["prompt"] == "fox"


@pytest.mark.parametrize(
  "argv, words",
  [
    (["--checkpiont=x"], "--checkpoint"),
    ([], "--checkpoint"),
    (["--checkpoint=x", "--promts=y"], "did you mean '--prompts'"),
    (["--checkpoint=x", "--prompts=y"], "add --output"),
    (["--checkpoint=x", "--output=y"], "add --prompts"),
    (["--checkpoint=x", "--temperature=hot"], "not a number from 0"),
    (["--checkpoint=x", "--top_p=1.5"], "from 0 to 1"),
    (["--checkpoint=x", "--top_k=-1"], "from 0 up"),
    (["--checkpoint=x", "--seed=1.5"], "whole number"),
    (["--checkpoint=x", "--prompts=/no/file", "--output=y"], "/no/file"),
  ],
)
def test_mistakes_are_told_in_three_lines(argv, words, capsys, monkeypatch):
  monkeypatch.setattr(chat, "load", lambda *_: _unloaded())
  assert chat.main(argv) == 2
  error = capsys.readouterr().err
  assert words in error
  assert len(error.strip().splitlines()) <= 3


def test_command_reads_lines_where_there_is_no_terminal(
  policy, capsys, monkeypatch
):
  asked = {}

  def load(checkpoint, sampling):
    asked.update(checkpoint=checkpoint, sampling=sampling)
    return chat.Talker(*policy, DATA, sampling)

  monkeypatch.setattr(chat, "load", load)
  monkeypatch.setattr("sys.stdin", io.StringIO("the fox\n\nowls\n"))
  argv = [
    "--checkpoint=runs/x",
    "--temperature=0",
    "--max_tokens=5",
    "--seed=4",
  ]
  assert chat.main(argv) == 0
  talker = make_talker(policy, temperature=0.0, max_tokens=5)
  first = "".join(talker.stream(user("the fox")))
  turns = [*user("the fox"), Turn("assistant", first.strip()), *user("owls")]
  second = "".join(talker.stream(talker.fitting(turns)))
  assert capsys.readouterr().out == f"{first}\n{second}\n"
  assert asked["checkpoint"] == "runs/x"
  assert asked["sampling"] == chat.Sampling(5, 0.0, 0, 1.0, 4)


def _stdin(content: bytes, encoding: str) -> io.TextIOWrapper:
  return io.TextIOWrapper(io.BytesIO(content), encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_bytes_of_any_encoding_can_be_read(encoding, monkeypatch, capsys):
  said = []

  class Listener(_Echo):
    def stream(self, turns, index):
      said.append(turns[-1].text)
      yield "ok"

  monkeypatch.setattr(chat, "load", lambda *_: Listener())
  content = b"\xef\xbb\xbfone\ncaf\xe9\nfour \xc3\xa9\n"
  monkeypatch.setattr("sys.stdin", _stdin(content, encoding))
  assert chat.main(["--checkpoint=x", "--forget"]) == 0
  out = capsys.readouterr().out.splitlines()
  if encoding == "latin-1":
    # Every byte is a character there, and those of UTF-8 read as such.
    assert said[1:] == ["café", "four é"]
  else:
    assert said == ["one", "four é"]
    assert out[1].startswith("error: ") and out[::2] == ["ok", "ok"]


def test_closed_input_and_output(monkeypatch, capsys):
  monkeypatch.setattr(chat, "load", lambda *_: _unloaded())
  monkeypatch.setattr("sys.stdin", None)
  assert chat.main(["--checkpoint=x"]) == 2
  assert "standard input is closed" in capsys.readouterr().err


def test_a_system_text_that_is_not_utf8_is_refused(capsys):
  assert chat.main(["--checkpoint=x", "--system=caf\udce9"]) == 2
  assert "--system" in capsys.readouterr().err


def test_interrupt_of_a_file_has_its_own_status(monkeypatch, capsys):
  def load(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(chat, "load", load)
  assert chat.main(["--checkpoint=x"]) == 130
  assert capsys.readouterr().err == "interrupted; nothing was written\n"
