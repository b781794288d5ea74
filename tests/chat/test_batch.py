"""Answers to the prompts of a file."""

from __future__ import annotations

import json
import os
import threading

import jax
import numpy as np
import pytest

from instructgpt_jax.chat import batch, engine
from instructgpt_jax.data.records import Turn
from instructgpt_jax.errors import UserError
from tests.chat.toy import DATA, make_session, user, write_prompts


def test_file_is_answered_in_order_and_long_prompts_are_counted(
  policy, tmp_path
):
  texts = ["red barn near one owl", "fox", "fox " * 40, "the"]
  prompts = write_prompts(tmp_path / "p.jsonl", texts)
  output = tmp_path / "answers.jsonl"
  counts = batch.answer_file(
    prompts, str(output), lambda: make_session(policy), batch_size=2
  )
  assert counts == (3, 1)
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert [row["prompt"] for row in rows] == texts
  assert rows[2]["completion"] is None and "at most 20" in rows[2]["skipped"]
  for row in (rows[0], rows[1], rows[3]):
    assert set(row) == {"prompt", "completion", "ended"}
    assert isinstance(row["completion"], str)
    assert isinstance(row["ended"], bool)


def test_output_repeats_prompts_as_in_the_file(policy, tmp_path):
  turns = [
    {"role": "user", "content": "the fox"},
    {"role": "assistant", "content": "a bird"},
    {"role": "user", "content": "owls"},
  ]
  records = ["the owls", turns, "U: fox A:"]
  prompts = write_prompts(tmp_path / "p.jsonl", records)
  output = tmp_path / "answers.jsonl"
  session = make_session(policy, temperature=0.0)
  batch.answer_file(prompts, str(output), lambda: session, system="red")
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  assert [row["prompt"] for row in rows] == records
  # The last turn is answered, with the system text and the earlier turns.
  turns = [
    Turn("system", "red"),
    *(Turn(t["role"], t["content"]) for t in turns),
  ]
  assert rows[1]["completion"] == "".join(session.stream(turns, 1))


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
  counts = batch.answer_file(
    str(tmp_path / "in.jsonl"),
    str(tmp_path / "out"),
    lambda: make_session(policy),
  )
  threads[1].join(10)
  assert counts == (2, 0)
  assert [json.loads(line)["prompt"] for line in answers] == ["fox", "fox"]
  assert (tmp_path / "out").is_fifo()


def test_output_link_replaces_its_target(policy, tmp_path):
  prompts = write_prompts(tmp_path / "p.jsonl", ["fox"])
  (tmp_path / "real").write_text("old")
  (tmp_path / "link").symlink_to("real")
  batch.answer_file(
    prompts,
    str(tmp_path / "link"),
    lambda: make_session(policy),
    overwrite=True,
  )
  assert (tmp_path / "link").is_symlink()
  assert json.loads((tmp_path / "real").read_text())["prompt"] == "fox"


def test_only_prompts_that_are_too_long_is_an_error(policy, tmp_path):
  prompts = write_prompts(tmp_path / "p.jsonl", ["fox " * 12] * 2)
  output = tmp_path / "answers.jsonl"
  with pytest.raises(UserError) as error:
    batch.answer_file(
      prompts, str(output), lambda: make_session(policy, max_tokens=25)
    )
  assert error.value.code == "prompt_too_long"
  assert "--max_tokens=18 " in error.value.fix
  assert not output.exists()
  assert make_session(policy, max_tokens=18).max_prompt == 14


def test_system_text_without_room_for_a_message_is_an_error(policy, tmp_path):
  session = make_session(policy)
  session.check_system_text("")
  session.check_system_text("fox")
  prompts = write_prompts(tmp_path / "p.jsonl", ["fox"])
  output = tmp_path / "answers.jsonl"
  with pytest.raises(UserError) as error:
    batch.answer_file(prompts, str(output), lambda: session, system="fox " * 99)
  assert error.value.code == "prompt_too_long"
  assert error.value.field == "--system"
  assert not output.exists()


def test_system_text_refused_by_the_template_is_an_error(policy, tmp_path):
  """The fix names no flag that this command lacks."""
  session, encode = make_session(policy), engine.ChatSession.encode

  def refuses(turns):
    if turns[0].role == "system":
      raise UserError("no system", file="t", fix="f", code="template_refuses")
    return encode(session, turns)

  session.encode = refuses
  with pytest.raises(UserError) as error:
    session.check_system_text("fox")
  assert (error.value.field, error.value.file) == ("--system", None)
  prompts = tmp_path / "p.jsonl"
  turns = [{"role": r, "content": "fox"} for r in ("system", "user")]
  lines = [{"prompt": "fox"}, {"prompt": turns}]
  prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
  with pytest.raises(UserError) as error:
    batch.answer_file(
      str(prompts), str(tmp_path / "answers.jsonl"), lambda: session
    )
  assert error.value.file == f"{prompts}:2"
  assert "chat_template" not in error.value.fix
  assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_logits_are_an_error(policy, tmp_path, temperature, value):
  model, params, tokenizer = policy
  broken = jax.tree.map(lambda x: x.at[0].set(value), params)
  sampling = engine.SamplingOptions(temperature=temperature)
  session = engine.ChatSession(model, broken, tokenizer, DATA, sampling)
  with pytest.raises(UserError) as error:
    list(session.stream(user("the fox")))
  assert error.value.code == "not_finite"
  prompts = write_prompts(tmp_path / "p.jsonl", ["the fox"])
  output = tmp_path / "answers.jsonl"
  with pytest.raises(UserError) as error:
    batch.answer_file(prompts, str(output), lambda: session)
  assert error.value.code == "not_finite" and not output.exists()


def _unloaded():
  raise AssertionError("the model was loaded before the files were checked")


def test_existing_output_is_not_overwritten(policy, tmp_path):
  prompts = write_prompts(tmp_path / "p.jsonl", ["fox"])
  output = tmp_path / "answers.jsonl"
  output.write_text("old")
  with pytest.raises(UserError) as error:
    batch.answer_file(prompts, str(output), _unloaded)
  assert error.value.code == "output_exists"
  assert output.read_text() == "old"
  (tmp_path / "link").symlink_to("p.jsonl")
  for same in (prompts, str(tmp_path / "link")):
    with pytest.raises(UserError) as error:
      batch.answer_file(prompts, same, _unloaded, overwrite=True)
    assert (error.value.code, error.value.file) == ("output_is_input", same)
  with pytest.raises(UserError) as error:
    batch.answer_file(prompts, str(tmp_path), _unloaded, overwrite=True)
  assert error.value.code == "not_a_file"

  class Broken(engine.ChatSession):
    def answer_batch(self, *unused):
      raise KeyboardInterrupt

  broken = Broken(*policy, DATA, engine.SamplingOptions())
  with pytest.raises(KeyboardInterrupt):
    batch.answer_file(prompts, str(output), lambda: broken, overwrite=True)
  assert output.read_text() == "old"
  batch.answer_file(
    prompts, str(output), lambda: make_session(policy), overwrite=True
  )
  assert json.loads(output.read_text())["prompt"] == "fox"
