"""The data command judges a file as a stage would."""

import json

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import __main__ as command
from instructgpt_jax.data import reading, tokenizers
from instructgpt_jax.data.reading import paths


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


def test_an_error_of_the_stage_is_shown(write, capsys):
  path = write(demonstrations(4) + demonstrations(9, words=300))
  status, out, _ = run(capsys, path, "--preset=tiny")
  assert status == 0 and "a stage refuses it" in out
  # A limit that somebody has set may drop most of a file.
  _, out, _ = run(capsys, path, "--data.max_prompt_tokens=100")
  assert "a stage refuses it" not in out and "warning" in out


def test_one_record_is_shown_as_the_model_sees_it(write, capsys, tmp_path):
  path = write(demonstrations(30))
  coder = tokenizers.train_tokenizer(
    [json.dumps(r) for r in demonstrations(30)],
    configs.Tokenizer(vocab_size=400, kind="bpe"),
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


def labelled(count, label, completion="x"):
  return [
    {"prompt": f"{label} {completion} {i}", "completion": completion,
     "label": label}
    for i in range(count)
  ]  # fmt: skip


def section(out, title):
  """Returns the part of a report that is about one kind."""
  rest = out[out.index(f"  {title}:") :]
  lines = rest.split("\n")
  end = next((i for i, s in enumerate(lines[1:], 1) if s[:4].strip()), None)
  return "\n".join(lines[:end])


def test_each_kind_is_judged_by_its_skips(write, capsys):
  values = labelled(90, False) + labelled(8, True, "<|endoftext|>")
  path = write(values + labelled(2, True))
  prompts, report = reading.read_prompts(path)
  assert (len(prompts), sum(report.skipped.values())) == (92, 8)
  _, out, _ = run(capsys, path)
  part = section(out, "prompts")
  assert "prompts: 92" in part and "a stage refuses it" not in part
  part = section(out, "demonstrations")
  assert "98 of 100" in part and "a stage refuses it" in part


def test_records_of_other_kinds_are_skips(write, capsys):
  values = [
    {"messages": [{"role": "user", "content": f"q{i}"}]
     + [{"role": "assistant", "content": "a"}] * (i < 20)}
    for i in range(100)
  ]  # fmt: skip
  path = write(values)
  _, report = reading.read_demonstrations(path)
  assert sum(report.skipped.values()) == 80
  _, out, _ = run(capsys, path)
  assert "80 of 100" in section(out, "demonstrations")
  assert "prompts: 100" in out


def test_files_of_a_directory_are_judged_together(write, capsys, tmp_path):
  write(demonstrations(9), "a.jsonl")
  ranked = {"completions": ["a", "b"], "ranks": [1, 2]}
  write([{"prompt": f"p{i}", **ranked} for i in range(30)], "b.jsonl")
  status, out, _ = run(capsys, str(tmp_path))
  # As a stage: 30 of 39 records of the directory are no demonstrations.
  assert status == 0 and "30 of 39" in out
  status, out, _ = run(capsys, *map(str, sorted(tmp_path.iterdir())))
  assert status == 0 and "a stage refuses it" not in out


def test_a_file_named_twice_is_read_once(write, capsys):
  path = write(demonstrations(20))
  _, out, _ = run(capsys, path, path)
  assert "together" not in out and paths.SAME_FILE in out
