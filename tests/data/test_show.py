"""`data show` prints records as a model sees them."""

import json
import re

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import __main__ as command
from instructgpt_jax.data import encoding, tokenizers
from tests.data import tokenizer_folders as folders

LOSS, END = "\x1b[32m", "\x1b[0m"


@pytest.fixture
def directory(tmp_path):
  folders.write(tmp_path / "tokenizer", folders.byte_level())
  return tmp_path


def write(directory, *records):
  path = directory / "x.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in records))
  return str(path)


def show(capsys, directory, *arguments):
  status = command.main(
    ["show", *arguments, f"--tokenizer={directory / 'tokenizer'}"]
  )
  out, err = capsys.readouterr()
  return status, out, err


def ids_of(line):
  """Returns the ids of a line, and those in [loss: …] and the like."""
  marked = [int(i) for part in re.findall(r"\[\w+: ([\d ]+)\]", line)
            for i in part.split()]  # fmt: skip
  return [int(i) for i in re.findall(r"\d+", line)], marked


def test_a_demonstration(directory, capsys):
  record = {"prompt": "hi\nthere", "completion": "yes.", "split": "valid"}
  path = write(directory, record)
  status, out, _ = show(capsys, directory, path)
  lines = out.splitlines()
  tokenizer = tokenizers.load_tokenizer(directory / "tokenizer")
  prompt = tokenizer.encode("Human: hi\nthere\n\nAssistant:")
  reply = [*tokenizer.encode(" yes."), tokenizer.document_end_id]
  assert status == 0
  assert lines[0] == f"{path}:1: demonstration, split valid"
  assert lines[1] == (
    f"  {len(prompt) + len(reply)} tokens, {len(reply)} with loss"
  )
  end = tokenizer.special_token(tokenizer.document_end_id)
  assert lines[2:6] == [
    "    Human: hi", "    there", "    ", f"    Assistant:[loss:  yes.{end}]",
  ]  # fmt: skip
  assert ids_of(lines[6]) == (prompt + reply, reply)
  assert lines[-1] == "[loss: …] carries loss"
  _, colored, _ = show(capsys, directory, path, "--color")
  assert f"    Assistant:{LOSS} yes.{end}{END}" in colored.splitlines()
  assert "[loss:" not in colored


def test_what_is_cut_or_too_long(directory, capsys):
  path = write(directory, {"prompt": "hi", "completion": "12345"})
  _, out, _ = show(
    capsys, directory, path, "--data.max_response_tokens=3",
    "--max_prompt_tokens=4",
  )  # fmt: skip
  tokenizer = tokenizers.load_tokenizer(directory / "tokenizer")
  prompt = tokenizer.encode("Human: hi\n\nAssistant:")
  end = tokenizer.special_token(tokenizer.document_end_id)
  assert f"Assistant:[loss:  12][cut: 345{end}]" in out
  assert f"{len(prompt) + 3} tokens, 3 with loss, 4 cut" in out
  assert f"the prompt has {len(prompt)} tokens" in out
  assert "[cut: …] is cut off: no model sees it" in out


def test_a_ranking_has_its_best_reply_first(directory, capsys):
  record = {"prompt": "q", "completions": ["bad", "good"], "ranks": [2, 1]}
  _, out, _ = show(capsys, directory, write(directory, record))
  labels = re.findall(r"^  (\S.*?), ", out, re.MULTILINE)
  assert labels == ["prompt", "rank 1", "rank 2"]
  tokenizer = tokenizers.load_tokenizer(directory / "tokenizer")
  end = tokenizer.special_token(tokenizer.document_end_id)
  assert f"     good[score: {end}]" in out and f"     bad[score: {end}]" in out


def test_prompts_and_documents(directory, capsys):
  _, out, _ = show(capsys, directory, write(directory, {"prompt": "q"}))
  assert "a reply is sampled from here" in out and "loss" not in out
  path = directory / "x.txt"
  path.write_text("the end")
  _, out, _ = show(capsys, directory, str(path))
  tokenizer = tokenizers.load_tokenizer(directory / "tokenizer")
  ids = [*tokenizer.encode("the end"), tokenizer.document_end_id]
  (line,) = [x for x in out.splitlines() if re.match(r" +\d+ \[loss: \d", x)]
  assert ids_of(line) == (ids, ids[1:])


def test_the_middle_of_a_long_sequence_is_left_out(directory, capsys):
  path = write(directory, {"prompt": "q", "completion": "a" * 40 + "z"})
  _, out, _ = show(capsys, directory, path, "--max_tokens=10")
  tokenizer = tokenizers.load_tokenizer(directory / "tokenizer")
  prompt = tokenizer.encode("Human: q\n\nAssistant:")
  count = len(prompt) + 43
  end = tokenizer.special_token(tokenizer.document_end_id)
  assert f"  {count} tokens, 43 with loss" in out
  assert out.count(f"    … {count - 10} more tokens …\n") == 2
  assert f"    Human\n    … {count - 10}" in out
  assert f"    [loss: aaaz{end}]\n" in out


def test_records_are_chosen_and_read_lazily(directory, capsys):
  good = [{"prompt": f"q{i}", "completion": "a"} for i in range(9)]
  path = write(directory, *good)
  with open(path, "a") as file:
    file.write("{broken\n")
  _, out, _ = show(capsys, directory, path, "--n=2", "--skip=3")
  assert re.findall(r"x\.jsonl:(\d+):", out) == ["4", "5"]
  _, out, _ = show(capsys, directory, path, "--n=1", "--kind=prompts")
  assert "x.jsonl:1: prompt" in out
  status, _, err = show(capsys, directory, path, "--n=50")
  assert status == 2 and f"{path}:10" in err


def test_no_record_is_an_error(directory, capsys):
  path = write(directory, {"prompt": "q", "completion": "a"})
  for flag in ("--skip=1", "--kind=rankings"):
    status, _, err = show(capsys, directory, path, flag)
    assert status == 2 and path in err and "fix:" in err


def test_loss_on_all_turns(directory, capsys):
  messages = [
    {"role": role, "content": text}
    for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)
  ]
  path = write(directory, {"messages": messages})
  _, out, _ = show(capsys, directory, path)
  assert "[loss:  b]" not in out
  _, out, _ = show(capsys, directory, path, "--sft.loss_turns=all")
  assert "Assistant:[loss:  b]\n" in out


def test_special_tokens_of_a_template_are_named(tmp_path, capsys):
  template, eos = folders.TEMPLATES["chatml"]
  folders.write(
    tmp_path / "tokenizer",
    folders.byte_level(),
    tokenizer_config={"eos_token": eos, "chat_template": template},
  )
  # What a user types as text is text.
  path = write(tmp_path, {"prompt": "a <|im_end|>", "completion": "b"})
  _, out, _ = show(capsys, tmp_path, path)
  assert "    <|im_start|>user\n    a <|im_end|><|im_end|>\n" in out
  assert "    [loss: b<|im_end|>]\n" in out
  tokenizer = tokenizers.load_tokenizer(tmp_path / "tokenizer")
  (ids,) = encoding.encode_completions(["b"], tokenizer, configs.Data())
  assert f"[loss: {' '.join(map(str, ids))}]" in out
  _, out, _ = show(capsys, tmp_path, path, "--data.chat_template=false")
  assert "Human: a" in out
