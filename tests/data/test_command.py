"""The data command judges a file as a stage would."""

import json

import pytest

from instructgpt_jax import config
from instructgpt_jax.data import __main__ as command
from instructgpt_jax.data import tokenizer


@pytest.fixture
def write(tmp_path):
  def write(records, name="x.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)

  return write


def run(capsys, *arguments):
  status = command.main(list(arguments))
  out, err = capsys.readouterr()
  return status, out, err


def demonstrations(count, words=5):
  return [
    {"prompt": f"q{i} " + "word " * words, "completion": f"a{i} b c"}
    for i in range(count)
  ]


def test_the_limits_of_a_preset_are_taken(write, capsys):
  path = write(demonstrations(20) + demonstrations(9, words=300))
  status, out, _ = run(capsys, path)
  assert status == 0 and "curation drops: nothing" in out
  assert "1024 tokens a prompt" in out and "--preset" in out
  status, out, _ = run(capsys, path, "--preset=tiny")
  assert status == 0 and "160 tokens a prompt, 80 a reply" in out
  assert "9 prompts over the token limit" in out
  assert "warning: data.demonstrations: 9 of 29" in out
  assert "--data.max_prompt_tokens" in out


def test_flags_go_before_the_preset(write, capsys):
  path = write(demonstrations(20) + demonstrations(9, words=300))
  for flag in ("--data.max_prompt_tokens=900", "--max_prompt_tokens=900"):
    _, out, _ = run(capsys, path, "--preset=tiny", flag)
    assert "curation drops: nothing" in out
    assert "900 tokens a prompt, 80 a reply" in out


def test_a_refusal_of_the_stage_is_shown(write, capsys):
  path = write(demonstrations(4) + demonstrations(9, words=300))
  status, out, _ = run(capsys, path, "--preset=tiny")
  assert status == 0 and "a stage refuses it" in out
  # A limit that somebody has set may drop most of a file.
  _, out, _ = run(capsys, path, "--data.max_prompt_tokens=100")
  assert "a stage refuses it" not in out and "warning" in out


def test_one_record_is_shown_as_the_model_sees_it(write, capsys, tmp_path):
  path = write(demonstrations(30))
  coder = tokenizer.train_tokenizer(
    [json.dumps(r) for r in demonstrations(30)],
    config.Tokenizer(vocab_size=400, kind="bpe"),
  )
  coder.save(tmp_path / "tokenizer")
  where = f"--tokenizer={tmp_path / 'tokenizer'}"
  _, out, _ = run(capsys, path, where)
  prompt = coder.encode("Human: q0 word word word word word \n\nAssistant:")
  reply = coder.encode(" a0 b c")
  assert f"as the model sees {path}:1" in out
  assert (
    f"prompt, {len(prompt)} tokens:"
    " Human: q0 word word word word word \\n\\nAssistant:\n" in out
  )
  assert f"loss starts here, after {len(prompt)} tokens" in out
  assert f"reply, {len(reply) + 1} tokens:  a0 b c<end-of-text>" in out
  _, out, _ = run(capsys, path, where, "--data.max_response_tokens=3")
  start = coder.decode(reply[:3])
  assert f"reply, 3 tokens: {start}<cut, {len(reply) - 2} tokens more" in out
  assert "curation cuts: 30 of 30 replies at 3 tokens" in out


def test_every_kind_of_record_is_shown(write, capsys):
  status, out, _ = run(
    capsys,
    write([{"text": "A river."}], "d.jsonl"),
    write([{"prompt": "Name one."}], "p.jsonl"),
    write(
      [{"prompt": "Name it.", "completions": ["no", "yes"], "ranks": [2, 1]}],
      "r.jsonl",
    ),
  )
  assert status == 0
  assert "3 words: A river.<end>" in out
  assert "a reply is sampled from here" in out
  assert out.index("rank 1, 2 words:  yes") < out.index("rank 2, 2 words:  no")


def test_files_of_one_kind_are_also_judged_together(write, capsys):
  one = write(demonstrations(20), "a.jsonl")
  two = write(demonstrations(20), "b.jsonl")
  _, out, _ = run(capsys, one, two)
  assert out.count("curation drops: nothing") == 2
  assert "demonstrations of 2 files together: 40" in out
  assert "20 duplicate records" in out


def test_bad_flags_are_errors(write, capsys):
  path = write(demonstrations(3))
  status, _, err = run(capsys, path, "--preset=huge")
  assert status == 2 and "huge" in err
  status, _, err = run(capsys, path, "--data.max_prompt_tokens=0")
  assert status == 2 and "data.max_prompt_tokens" in err
