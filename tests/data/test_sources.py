"""Where files are found, and what is said about bad ones."""

import gzip
import json
import os

import pytest

from instructgpt_jax.data import __main__ as command
from instructgpt_jax.data import sources
from instructgpt_jax.errors import UserError

GOOD = b'{"prompt": "p", "completion": "c"}\n'
RANKED = b'{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}\n'


def make(tmp_path, *names):
  for name in names:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(GOOD)


def test_globs_folders_and_lists(tmp_path, monkeypatch):
  make(tmp_path, "b.jsonl", "a.jsonl", "in/c.json", "in/deep/d.jsonl.gz",
       "in/README.md", "in/x.csv")  # fmt: skip
  monkeypatch.chdir(tmp_path)
  assert sources.expand("*.jsonl") == ["a.jsonl", "b.jsonl"]
  assert sources.expand("in/**") == ["in/c.json", "in/deep/d.jsonl.gz"]
  assert sources.expand("in") == ["in/c.json", "in/deep/d.jsonl.gz"]
  assert sources.expand("b.jsonl, *.jsonl,in") == [
    "b.jsonl", "a.jsonl", "in/c.json", "in/deep/d.jsonl.gz",
  ]  # fmt: skip
  make(tmp_path, "odd,name.jsonl", "[x].jsonl")
  assert sources.expand("odd,name.jsonl") == ["odd,name.jsonl"]
  assert sources.expand("[x].jsonl") == ["[x].jsonl"]


def test_ignored_files_are_counted(tmp_path):
  make(tmp_path, "a.jsonl", "README.md", "x.csv")
  found, report = sources.read_demonstrations(str(tmp_path))
  assert len(found) == 1 and len(report.ignored) == 2
  assert "ignored 2 files" in str(report)


def test_a_folder_may_hold_files_of_other_kinds(tmp_path):
  make(tmp_path, "a.jsonl")
  (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "p"}\n')
  found, report = sources.read_demonstrations(str(tmp_path))
  assert len(found) == 1
  assert report.skipped == {"records without demonstrations": 1}
  with pytest.raises(UserError):
    sources.read_demonstrations(f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl")
  with pytest.raises(UserError, match="none of its 2 files"):
    sources.read_rankings(str(tmp_path))


def test_missing_path_names_the_nearest(tmp_path):
  make(tmp_path, "data/train.jsonl")
  for wrong, right in (
    ("data/trian.jsonl", "data/train.jsonl"),
    ("dada/train.jsonl", "data"),
  ):
    with pytest.raises(UserError) as e:
      sources.expand(str(tmp_path / wrong))
    assert e.value.file == str(tmp_path / wrong)
    assert f"{tmp_path / right}'" in e.value.fix


def ranks(value, completions=("a", "b")):
  record = {"prompt": "p", "completions": completions, "ranks": value}
  return RANKED + json.dumps(record).encode() + b"\n"


D, R, P, T = (
  sources.read_demonstrations,
  sources.read_rankings,
  sources.read_prompts,
  sources.read_documents,
)
# name: (reader, file name, content, line, part of the message)
BAD = {
  "empty file": (D, "x.jsonl", b"", 1, "empty"),
  "blank file": (T, "x.txt", b" \n\n", 1, "empty"),
  "empty array": (D, "x.json", b"[]", 1, "no records"),
  "empty gzip": (D, "x.jsonl.gz", gzip.compress(b""), 1, "empty"),
  "truncated gzip": (
    D,
    "x.jsonl.gz",
    gzip.compress(GOOD * 3 + os.urandom(4000).hex().encode())[:-900],
    4,
    "cut short",
  ),
  "no gzip": (D, "x.jsonl.gz", GOOD, 1, "no valid gzip"),
  "corrupt gzip": (
    D, "x.jsonl.gz", gzip.compress(GOOD)[:-6] + b"xxxxxx", None, "no valid",
  ),
  "invalid UTF-8": (D, "x.jsonl", GOOD * 2 + b"caf\xe9\n", 3, "0xe9"),
  "invalid UTF-8 text": (T, "x.txt", b"one\ntwo \xff\n", 2, "UTF-8"),
  "not JSON": (D, "x.jsonl", GOOD + b"\n{oops}\n", 3, "not JSON"),
  "cut line": (D, "x.jsonl", GOOD + b'{"prompt": "p"', 2, "not JSON"),
  "cut array": (D, "x.json", b"[\n" + GOOD.strip() + b",\n", 3, "not JSON"),
  "no comma": (D, "x.json", b"[\n" + GOOD + GOOD + b"]", 3, "comma"),
  "rest": (D, "x.json", b"[" + GOOD + b"]\nx", 3, "after the array"),
  "deep": (D, "x.jsonl", b"[" * 100_000, 1, "nested"),
  "missing field": (
    D, "x.jsonl", GOOD + b'{"prompt": "p", "complexion": "c"}\n', 2,
    "complexion",
  ),
  "missing in the first": (D, "x.jsonl", b'{"promt": "p"}', 1, "prompt"),
  "missing ranks": (
    R, "x.jsonl", b'{"prompt": "p", "completions": ["a", "b"]}', 1, "ranks",
  ),
  "unknown fields": (D, "x.jsonl", b'{"foo": 1}', 1, "completion"),
  "no object": (D, "x.jsonl", b"[1, 2]", 1, "object"),
  "number later": (D, "x.jsonl", GOOD + b"3\n", 2, "lines before"),
  "text later": (D, "x.jsonl", GOOD + b'"x"\n', 2, "lines before"),
  "object later": (P, "x.jsonl", b'"x"\n' + GOOD, 2, "text is expected"),
  "number as text": (
    D, "x.jsonl", b'{"prompt": 3, "completion": "c"}', 1,
    "a whole number",
  ),
  "null": (
    D, "x.jsonl", GOOD + b'{"prompt": "p", "completion": null}', 2, "null",
  ),
  "bool id": (D, "x.jsonl", GOOD[:-2] + b', "user_id": true}', 1, "user_id"),
  "text as list": (
    R, "x.jsonl", b'{"prompt": "p", "completions": "a", "ranks": [1]}', 1,
    "completions",
  ),
  "unknown split": (D, "x.jsonl", GOOD[:-2] + b', "split": "x"}', 1, "'x'"),
  "unknown role": (
    D, "x.jsonl", b'{"messages": [{"role": "cat", "content": "c"}]}', 1,
    "cat",
  ),
  "no turns": (D, "x.jsonl", b'{"messages": []}', 1, "turns"),
  "turn without text": (
    D, "x.jsonl", b'{"messages": [{"role": "user"}]}', 1, "content",
  ),
  "too few ranks": (R, "x.jsonl", ranks([1]), 2, "1 ranks for 2"),
  "too many ranks": (R, "x.jsonl", ranks([1, 2, 3]), 2, "3 ranks for 2"),
  "rank 0": (R, "x.jsonl", ranks([0, 1]), 2, "0 is no rank"),
  "rank 1.5": (R, "x.jsonl", ranks([1, 1.5]), 2, "1.5 is no rank"),
  "one completion": (R, "x.jsonl", ranks([1], ["a"]), 2, "cannot be ranked"),
  "empty completion of a ranking": (
    R, "x.jsonl", ranks([1, 2], ["a", " "]), 2, "completions[1]",
  ),
  "number in completions": (
    R, "x.jsonl", ranks([1, 2], ["a", 1]), 2, "completions[1]",
  ),
  "only ties": (
    R, "x.jsonl", ranks([1, 1]).split(b"\n")[1], 1, "only ties",
  ),
  "empty completion": (
    D, "x.jsonl", GOOD + b'{"prompt": "p", "completion": " "}', 2, "empty",
  ),
  "nothing but end of text": (
    D, "x.jsonl", b'{"prompt": "p", "completion": "<|endoftext|>"}', 1,
    "1 empty completions",
  ),
  "empty prompt": (P, "x.jsonl", b'{"prompt": ""}', 1, "empty"),
  "empty prompt text": (P, "x.jsonl", b'"a"\n""', 2, "empty"),
  "half a surrogate": (D, "x.jsonl", GOOD[:-3] + b'\\ud800"}', 1, "surrogate"),
  "text as demonstrations": (D, "x.txt", b"hello", 1, "plain text"),
  "wrong preference": (
    R, "x.jsonl",
    b'{"input": "p", "output_1": "a", "output_2": "b", "label": 3}', 1, "3",
  ),
  "no transcript": (
    R, "x.jsonl", b'{"chosen": "a", "rejected": "b"}', 1, "transcript",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path):
  read, file, content, line, part = BAD[name]
  path = tmp_path / file
  path.write_bytes(content)
  with pytest.raises(UserError) as e:
    read(str(path))
  message = str(e.value)
  where = f"{path}:" if line is None else f"{path}:{line}"
  assert message.startswith(where), message
  assert part in message
  assert "\n  fix: " in message and message.count("\n") <= 2


@pytest.mark.parametrize("name", ["truncated gzip", "not JSON", "only ties"])
def test_bad_input_on_the_command_line(name, tmp_path, capsys):
  _, file, content, _, part = BAD[name]
  path = tmp_path / file
  path.write_bytes(content)
  assert command.main([str(path)]) == 2
  error = capsys.readouterr().err
  assert str(path) in error and 1 <= len(error.splitlines()) <= 3
  assert "fix" in error


def test_only_ties_are_counted_where_others_are_left(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_bytes(ranks([1, 1]))
  found, report = sources.read_rankings(str(path))
  assert len(found) == 1
  assert report.skipped == {"rankings with only ties": 1}
  assert "skipped 1 rankings with only ties" in str(report)


def test_unreadable(tmp_path, monkeypatch):
  path = tmp_path / "x.jsonl"
  path.write_bytes(GOOD)

  def refuse(*a, **k):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr("builtins.open", refuse)
  with pytest.raises(UserError, match="Permission denied"):
    sources.read_demonstrations(str(path))


def test_command_line(tmp_path, capsys):
  lines = [
    {"prompt": "What is it?", "completion": "one two three"},
    {"prompt": "Mail a@example.com please", "completion": "one"},
    {"prompt": "What is it?", "completion": "one two three"},
    {"prompt": " ".join(["long"] * 50), "completion": "x", "user_id": "u"},
  ]
  path = tmp_path / "x.jsonl"
  path.write_text("".join(json.dumps({**v, "split": "train"}) + "\n"
                          for v in lines))  # fmt: skip
  assert command.main([str(path), "--max_prompt_tokens=20"]) == 0
  out = capsys.readouterr().out
  assert "words between blanks" in out
  assert "recognised as: own demonstrations" in out
  assert "demonstrations: 4" in out
  assert "completion words: mean 2.0, deviation 1.0, median 2, max 3" in out
  assert "1 duplicate records" in out
  assert "1 prompts over the token limit" in out
  assert "1 records with personal information: e-mail address" in out
  assert "splits: 1 train, 0 valid, 0 test" in out


def test_command_line_help(capsys):
  with pytest.raises(SystemExit) as e:
    command.main(["--help"])
  assert e.value.code == 0
  out = capsys.readouterr().out
  assert "PATH" in out and "--tokenizer" in out


def test_command_line_missing_file(tmp_path, capsys):
  assert command.main([str(tmp_path / "no.jsonl")]) == 2
  assert "no such file" in capsys.readouterr().err
