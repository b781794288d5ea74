"""Discovery of files, and errors of invalid ones."""

import bz2
import gzip
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from instructgpt_jax.data import __main__ as command
from instructgpt_jax.data import reading
from instructgpt_jax.data.reading import listing as listing_lib
from instructgpt_jax.data.reading import paths, text_files
from instructgpt_jax.errors import UserError

GOOD = b'{"prompt": "p", "completion": "c"}\n'
RANKED = b'{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}\n'


def make(tmp_path, *names):
  for name in names:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(GOOD)


def test_globs_directories_and_lists(tmp_path, monkeypatch):
  make(tmp_path, "b.jsonl", "a.jsonl", "in/c.json", "in/deep/d.jsonl.gz",
       "in/README.md", "in/x.xml")  # fmt: skip
  monkeypatch.chdir(tmp_path)
  assert reading.expand("*.jsonl") == ["a.jsonl", "b.jsonl"]
  assert reading.expand("in/**") == ["in/c.json", "in/deep/d.jsonl.gz"]
  assert reading.expand("in") == ["in/c.json", "in/deep/d.jsonl.gz"]
  assert reading.expand("b.jsonl, *.jsonl,in") == [
    "b.jsonl", "a.jsonl", "in/c.json", "in/deep/d.jsonl.gz",
  ]  # fmt: skip
  make(tmp_path, "odd,name.jsonl", "[x].jsonl")
  assert reading.expand("odd,name.jsonl") == ["odd,name.jsonl"]
  assert reading.expand("[x].jsonl") == ["[x].jsonl"]


def test_ignored_files_are_counted(tmp_path):
  make(tmp_path, "a.jsonl", "README.md", "x.xml")
  actual, report = reading.read_demonstrations(str(tmp_path))
  assert len(actual) == 1 and len(report.ignored) == 2
  assert "ignored 2 files" in str(report)


def test_a_directory_may_contain_files_of_other_kinds(tmp_path):
  make(tmp_path, "a.jsonl")
  (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "p"}\n')
  actual, report = reading.read_demonstrations(str(tmp_path))
  assert len(actual) == 1
  assert report.skipped == {"records without demonstrations": 1}
  with pytest.raises(UserError):
    reading.read_demonstrations(f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl")
  with pytest.raises(UserError, match="none of its 2 files"):
    reading.read_rankings(str(tmp_path))


def test_missing_path_names_the_nearest(tmp_path):
  make(tmp_path, "data/train.jsonl")
  for wrong, right in (
    ("data/trian.jsonl", "data/train.jsonl"),
    ("dada/train.jsonl", "data"),
  ):
    with pytest.raises(UserError) as e:
      reading.expand(str(tmp_path / wrong))
    assert e.value.file == str(tmp_path / wrong)
    assert f"{tmp_path / right}'" in e.value.fix


def ranks(value, completions=("a", "b")):
  record = {"prompt": "p", "completions": completions, "ranks": value}
  return RANKED + json.dumps(record).encode() + b"\n"


D, R, P, T = (
  reading.read_demonstrations,
  reading.read_rankings,
  reading.read_prompts,
  reading.read_documents,
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
  actual, report = reading.read_rankings(str(path))
  assert len(actual) == 1
  assert report.skipped == {"rankings with only ties": 1}
  assert "skipped 1 rankings with only ties" in str(report)


def test_unreadable(tmp_path, monkeypatch):
  path = tmp_path / "x.jsonl"
  path.write_bytes(GOOD)

  def refuse(*a, **k):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr("builtins.open", refuse)
  with pytest.raises(UserError, match="Permission denied"):
    reading.read_demonstrations(str(path))


def test_command_line(tmp_path, capsys):
  lines = [
    {"prompt": "What is it?", "completion": "one two three"},
    {"prompt": "Mail ann@corp.io please", "completion": "one"},
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


# Each file once.


def paths_of(tmp_path, *spec):
  names = ",".join(str(tmp_path / s) for s in spec)
  return [str(os.path.relpath(p, tmp_path)) for p in reading.expand(names)]


def reasons(tmp_path):
  listing = reading.list_files(str(tmp_path))
  return {
    os.path.relpath(i.path, tmp_path): i.reason for i in listing.ignored
  }  # fmt: skip


def test_a_link_to_a_directory_is_not_read_again(tmp_path):
  make(tmp_path, "v1/a.jsonl", "v1/b.jsonl")
  (tmp_path / "latest").symlink_to("v1")
  assert paths_of(tmp_path, "") == ["v1/a.jsonl", "v1/b.jsonl"]
  assert reasons(tmp_path) == {"latest": paths.SAME_DIRECTORY}
  demonstrations, report = reading.read_demonstrations(str(tmp_path))
  assert len(demonstrations) == 2 and "latest" in str(report)
  assert paths_of(tmp_path, "**", "latest", "*/*.jsonl") == [
    "v1/a.jsonl", "v1/b.jsonl",
  ]  # fmt: skip


@pytest.mark.parametrize("others", [["run/checkpoints/5/x.json"], []])
def test_files_that_a_run_writes_are_not_data(others, tmp_path):
  """The workdir may be there, and the files are read again on resume."""
  make(tmp_path, "a.jsonl", "run/mine.jsonl", "model/b.jsonl")
  written = ["run/config.json", "run/metrics.jsonl", *others]
  make(tmp_path, *written)
  assert paths_of(tmp_path, "") == [
    "a.jsonl", "model/b.jsonl", "run/mine.jsonl",
  ]  # fmt: skip
  top = {os.sep.join(name.split(os.sep)[:2]) for name in written}
  assert reasons(tmp_path) == dict.fromkeys(top, paths.RUN)


def test_links_in_circles_end(tmp_path):
  make(tmp_path, "a.jsonl", "in/b.jsonl")
  for name in ("loop", "loop2", "in/up", "in/up2"):
    (tmp_path / name).symlink_to(tmp_path)
  (tmp_path / "self").symlink_to("self")
  assert paths_of(tmp_path, "") == ["a.jsonl", "in/b.jsonl"]
  assert paths_of(tmp_path, "**/*.jsonl") == ["a.jsonl", "in/b.jsonl"]
  assert reasons(tmp_path)["self"] == paths.OTHER_KIND


def test_names_of_one_file_are_one_file(tmp_path):
  make(tmp_path, "b.jsonl")
  (tmp_path / "a.jsonl").symlink_to("b.jsonl")
  os.link(tmp_path / "b.jsonl", tmp_path / "c.jsonl")
  assert paths_of(tmp_path, "") == ["b.jsonl"]
  assert reasons(tmp_path) == {
    "a.jsonl": paths.SAME_FILE, "c.jsonl": paths.SAME_FILE,
  }  # fmt: skip
  assert paths_of(tmp_path, "a.jsonl", "") == ["a.jsonl"]
  assert paths_of(tmp_path, "c.jsonl", "a.jsonl", "b.jsonl") == ["c.jsonl"]


def test_a_link_gives_the_name_and_another_directory_the_content(tmp_path):
  """A download cache names files by hashes, and links to them by name."""
  make(tmp_path, "blobs/abc")
  (tmp_path / "snapshot").mkdir()
  (tmp_path / "snapshot" / "a.jsonl").symlink_to("../blobs/abc")
  assert paths_of(tmp_path, "snapshot") == ["snapshot/a.jsonl"]


def test_a_link_to_nothing_is_an_error(tmp_path):
  make(tmp_path, "a.jsonl")
  (tmp_path / "b.jsonl").symlink_to("gone")
  for spec in (tmp_path, tmp_path / "b.jsonl", tmp_path / "*.jsonl"):
    with pytest.raises(UserError) as e:
      reading.expand(str(spec))
    assert (e.value.code, e.value.file) == (
      "broken_link", str(tmp_path / "b.jsonl"),
    )  # fmt: skip


def test_hidden_names_are_left_out(tmp_path):
  make(tmp_path, "a.jsonl", ".git/b.jsonl", ".c.jsonl", "in/._a.jsonl")
  assert paths_of(tmp_path, "") == ["a.jsonl"]
  assert paths_of(tmp_path, ".c.jsonl") == [".c.jsonl"]


def test_names_with_signs_of_globs_and_of_other_encodings(tmp_path):
  make(tmp_path, "a[1]/x?.jsonl", "a*/y.jsonl", "caf\udce9.jsonl")
  assert paths_of(tmp_path, "a[1]") == ["a[1]/x?.jsonl"]
  assert paths_of(tmp_path, "a*") == ["a*/y.jsonl"]
  demonstrations, report = reading.read_demonstrations(
    str(tmp_path / "caf\udce9.jsonl")
  )
  assert len(demonstrations) == 1 and "caf\udce9" in str(report)


def test_globs_with_stars_for_directories(tmp_path, monkeypatch):
  make(tmp_path, "x/a.jsonl", "x/in/a.jsonl", "x/in/b.jsonl", "y/in/a.jsonl")
  monkeypatch.chdir(tmp_path)
  assert reading.expand("**/in/a.jsonl") == ["x/in/a.jsonl", "y/in/a.jsonl"]
  assert reading.expand("**/a.*") == [
    "x/a.jsonl", "x/in/a.jsonl", "y/in/a.jsonl",
  ]  # fmt: skip
  assert reading.expand("x/**/**/b.jsonl") == ["x/in/b.jsonl"]
  assert reading.expand("[xy]/**") == [
    "x/a.jsonl", "x/in/a.jsonl", "x/in/b.jsonl", "y/in/a.jsonl",
  ]  # fmt: skip
  assert reading.expand(f"{tmp_path}/**/b.jsonl") == [
    f"{tmp_path}/x/in/b.jsonl"
  ]
  listing = reading.list_files("x/*")
  assert list(listing.files) == ["x/a.jsonl"]
  assert listing.ignored == [("x/in", paths.DIRECTORY)]


def test_a_directory_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
  make(tmp_path, "a.jsonl", "in/b.jsonl")
  real = os.listdir

  def refuse(path):
    if str(path).endswith("in"):
      raise PermissionError(13, "Permission denied")
    return real(path)

  monkeypatch.setattr(os, "listdir", refuse)
  with pytest.raises(UserError) as e:
    reading.expand(str(tmp_path))
  assert (e.value.code, e.value.file) == ("unreadable", str(tmp_path / "in"))


def test_a_file_that_vanishes_is_an_error(tmp_path, monkeypatch):
  make(tmp_path, "a.jsonl", "b.jsonl")
  real = text_files.read_text

  def read(path):
    if path.endswith("b.jsonl"):
      os.unlink(path)
    return real(path)

  listing = paths.list_files(str(tmp_path))
  monkeypatch.setattr(text_files, "read_text", read)
  monkeypatch.setattr(listing_lib, "list_files", lambda spec: listing)
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(str(tmp_path))
  assert (e.value.code, e.value.file) == (
    "unreadable", str(tmp_path / "b.jsonl"),
  )  # fmt: skip


# Pipes.


def pipe(path, content):
  """Makes a named pipe whose content can be read once."""
  os.mkfifo(path)
  thread = threading.Thread(
    target=lambda: path.write_bytes(content), daemon=True
  )
  thread.start()


@pytest.mark.parametrize(
  "name, content, read",
  [
    ("p", GOOD * 3, D),
    ("p", gzip.compress(GOOD * 3, mtime=0), D),
    ("p", b"[" + GOOD + b"," + GOOD + b"," + GOOD + b"]", D),
    ("p.jsonl", GOOD * 3, D),
    ("p.jsonl.gz", gzip.compress(GOOD * 3, mtime=0), D),
    ("p", b'"one"\n"two"\n"three"\n', P),
    ("p", b'["one",\n"two","three"]\n'.replace(b"\n", b""), P),
    ("p", b'[\n "one",\n "two",\n "three"\n]\n', P),
    ("p", b'["one",\n"two",\n"three"]', P),
    ("p", b"[Verse]\nSing\n", T),
    ("p", b'["So," she said,\n"he came."]', T),
    ("p", b'["So", she said,\n"he came."]', T),
    ("p", b'"So," she said\n', T),
    ("p", b"{brace} of a text", T),
    ("p.txt", b"some text", T),
  ],
)
def test_a_pipe_is_read_once_and_asked_twice(tmp_path, name, content, read):
  pipe(tmp_path / name, content)
  count = 1 if read is T else 3
  for _ in range(2):
    demonstrations, _ = read(str(tmp_path / name))
    assert len(demonstrations) == count


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_the_standard_input_is_a_source(name, tmp_path):
  script = """
    import sys
    from instructgpt_jax.data import reading
    from instructgpt_jax.data.reading import paths, text_files
    for _ in range(2):
      print(len(reading.read_demonstrations(sys.argv[1])[0]))
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script), name],
    input=gzip.compress(GOOD * 3),
    capture_output=True,
  )
  assert done.stdout.split() == [b"3", b"3"], done.stderr


@pytest.mark.parametrize(
  "names", [("/dev/fd/0", "/dev/stdin"), ("-", "/dev/stdin")]
)
def test_two_names_of_the_standard_input(names):
  run = [sys.executable, "-m", "instructgpt_jax.data", *names]
  done = subprocess.run(run, input=GOOD * 3, capture_output=True)
  out = done.stdout.decode()
  assert done.returncode == 0, done.stderr
  assert out.count("demonstrations: 3") == 1 and "together" not in out
  assert paths.SAME_FILE in out
  script = """
    import sys
    from instructgpt_jax.data import reading
    for name in sys.argv[1:]:
      print(len(reading.read_demonstrations(name)[0]))
  """
  run = [sys.executable, "-c", textwrap.dedent(script), *names]
  done = subprocess.run(run, input=GOOD * 3, capture_output=True)
  assert done.stdout.split() == [b"3", b"3"], done.stderr


def test_a_name_that_is_repeated_is_counted(tmp_path):
  make(tmp_path, "a.jsonl")
  listing = reading.list_files(f"{tmp_path}/*.jsonl,{tmp_path}/a.jsonl")
  assert list(listing.files.values()) == [True] and not listing.ignored
  listing = reading.list_files(*[str(tmp_path / "a.jsonl")] * 2)
  assert len(listing.files) == 1
  assert [i.reason for i in listing.ignored] == [paths.SAME_FILE]


def test_errors_in_a_pipe_have_lines(tmp_path):
  pipe(tmp_path / "p", GOOD + b"{oops}\n")
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(str(tmp_path / "p"))
  assert (e.value.code, e.value.file, e.value.line) == (
    "bad_json", str(tmp_path / "p"), 2,
  )  # fmt: skip


def test_processes_do_not_share_a_pipe(tmp_path, monkeypatch):
  os.mkfifo(tmp_path / "p")
  monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(str(tmp_path / "p"))
  assert e.value.code == "shared_pipe"


def test_devices_and_sockets_are_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with socket.socket(socket.AF_UNIX) as server:
    server.bind("s.jsonl")
    for name in ("s.jsonl", "/dev/null"):
      with pytest.raises(UserError) as e:
        reading.read_demonstrations(name)
      assert (e.value.code, e.value.file) == ("not_a_file", name)


def test_pipes_and_sockets_in_directories_are_counted(tmp_path):
  make(tmp_path, "a.jsonl")
  os.mkfifo(tmp_path / "p.jsonl")
  assert paths_of(tmp_path, "") == ["a.jsonl"]
  assert reasons(tmp_path) == {"p.jsonl": paths.NO_FILE}


# What stands beside the data.


def test_metadata_and_empty_files_are_counted(tmp_path):
  make(tmp_path, "train.jsonl")
  for name, content in {
    "dataset_infos.json": b'{"default": {"features": {}, "splits": {}}}',
    "state.json": b'{\n "_data_files": [{"filename": "a.arrow"}]\n}',
    "config.json": b'{"model_type": "llama"}',
    "empty.json": b"",
    "zz.jsonl": b"",
    "blank.txt": b"\n\n",
    "empty.jsonl.gz": gzip.compress(b""),
    "README.md": b"# data",
    "notes.txt": b"some notes",
  }.items():
    (tmp_path / name).write_bytes(content)
  for spec in (tmp_path, tmp_path / "*"):
    demonstrations, report = reading.read_demonstrations(str(spec))
    assert len(demonstrations) == 1
    ignored = {os.path.basename(i.path): i.reason for i in report.ignored}
    notes = ignored.pop("notes.txt")
    assert notes.startswith("plain text")
    assert ignored == {
      "dataset_infos.json": paths.NO_RECORDS,
      "state.json": paths.NO_RECORDS,
      "config.json": paths.NO_RECORDS,
      "empty.json": paths.EMPTY,
      "zz.jsonl": paths.EMPTY,
      "blank.txt": paths.EMPTY,
      "empty.jsonl.gz": paths.EMPTY,
      "README.md": paths.OTHER_KIND,
    }
    assert "dataset_infos.json" in str(report) and "zz.jsonl" in str(report)


def test_metadata_alone_is_an_error(tmp_path):
  for name in ("a.json", "b.json"):
    (tmp_path / name).write_bytes(b'{"default": {}}')
  with pytest.raises(UserError) as e:
    reading.read_demonstrations(str(tmp_path))
  assert e.value.file == str(tmp_path / "a.json")


def test_a_record_in_a_json_file_is_read(tmp_path):
  make(tmp_path, "a.jsonl", "b.json")
  (tmp_path / "c.json").write_bytes(GOOD * 2)
  documents, _ = reading.read_demonstrations(str(tmp_path))
  assert len(documents) == 4


def test_ignored_files_are_printed(tmp_path, capsys):
  make(tmp_path, "a.jsonl", "x.xml")
  (tmp_path / "empty.jsonl").write_bytes(b"")
  assert command.main([str(tmp_path)]) == 0
  out = capsys.readouterr().out
  assert "x.xml" in out and "empty.jsonl" in out


# What files are.

NOT_TEXT = {
  "bzip2": ("x.jsonl.bz2", bz2.compress(GOOD * 9), "compressed_file"),
  "bzip2 as jsonl": ("x.jsonl", bz2.compress(GOOD * 9), "compressed_file"),
  "gzip twice": (
    "x.jsonl.gz", gzip.compress(gzip.compress(GOOD)), "compressed_file",
  ),
  "zip in gzip": ("x.txt.gz", gzip.compress(b"PK\x03\x04aaaa"), "archive"),
  "no gzip": ("x.jsonl.gz", GOOD, "bad_gzip"),
  "zip as json": ("x.json", b"PK\x03\x04\x14\x00\x00\x00", "archive"),
  "parquet as txt": ("x.txt", b"PAR1\x15\x04\x15\x10\x15", "binary_file"),
  "pointer as gz": (
    "x.jsonl.gz", b"version https://git-lfs.github.com/spec/v1\n",
    "lfs_pointer",
  ),
  "pointer as txt": (
    "x.txt", b"version https://git-lfs.github.com/spec/v1\n", "lfs_pointer",
  ),
  "page as json": ("x.json", b"<!DOCTYPE html><html>404", "html_page"),
  "page as txt": ("x.txt", b"\xef\xbb\xbf<html><body>", "html_page"),
  "UTF-16 without a mark": ("x.txt", "A river\n".encode("utf-16-le"), "utf16"),
  "UTF-16BE without a mark": (
    "x.jsonl", GOOD.decode().encode("utf-16-be"), "utf16",
  ),
  "UTF-16 read as latin-1": (
    "x.txt", "A river\n".encode("utf-16").decode("latin-1").encode(),
    "nul_characters",
  ),
  "UTF-16 cut": ("x.txt", b"\xff\xfea\0b", "not_utf8"),
  "NULs at the end": ("x.txt", b"text" + bytes(4096) + b"\n", "nul_characters"),
  "NULs in JSON": (
    "x.jsonl",
    json.dumps({"text": "A\0 \0r\0i\0v\0e\0r\0"}).encode(), "nul_characters",
  ),
  "bytes": ("x.txt", bytes(range(256)) * 9, "binary_file"),
  "cut in a character": ("x.txt", "a bird é".encode()[:-1], "cut_short"),
  "latin-1": ("x.txt", b"a caf\xe9\n", "not_utf8"),
  "long number": ("x.jsonl", b'{"text": "a", "n": %s}' % (b"9" * 5000),
                  "bad_json"),
  "long number in an array": (
    "x.json", b'[{"text": "a", "n": %s}]' % (b"9" * 5000), "bad_json",
  ),
  "an array of texts as txt": ("x.txt", b'[\n "a",\n "b"\n]', "json_in_txt"),
  "JSON lines as txt": ("x.txt", b'{"text": "a"}\n{"text": "b"}\n',
                        "json_in_txt"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_TEXT)
def test_a_file_that_is_not_text_is_named(name, tmp_path):
  file, content, code = NOT_TEXT[name]
  path = tmp_path / file
  path.write_bytes(content)
  with pytest.raises(UserError) as e:
    reading.read_documents(str(path))
  assert (e.value.code, e.value.file) == (code, str(path))
  assert e.value.line == 1 and e.value.fix
  assert "latin1" not in e.value.fix
  if "number" in name:
    assert "4300 digits" in e.value.problem


@pytest.mark.parametrize(
  "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be-mark"]
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_marked_encodings_and_newlines_are_read(tmp_path, encoding, newline):
  texts = ["a café", "日本語", "𝒜 river"]
  lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
  text = newline.join([*lines, ""])
  if encoding == "utf-16-be-mark":
    content = ("\ufeff" + text).encode("utf-16-be")
  else:
    content = text.encode(encoding)
  (tmp_path / "a.jsonl").write_bytes(content)
  documents, _ = reading.read_documents(str(tmp_path / "a.jsonl"))
  assert [d.text for d in documents] == texts
  (tmp_path / "a.txt").write_bytes(newline.join(texts).encode("utf-8-sig"))
  documents, _ = reading.read_documents(str(tmp_path / "a.txt"))
  assert [d.text for d in documents] == ["\n".join(texts)]


def test_marks_between_joined_files_are_removed(tmp_path):
  mark = "\ufeff".encode()
  (tmp_path / "a.jsonl").write_bytes(mark + GOOD + mark + GOOD)
  documents, _ = reading.read_demonstrations(str(tmp_path / "a.jsonl"))
  assert len(documents) == 2
  (tmp_path / "a.txt").write_bytes(
    mark + mark + b"a\n" + mark + b"b \xef\xbb\xbf"
  )
  documents, _ = reading.read_documents(str(tmp_path / "a.txt"))
  assert documents[0].text == "a\nb \ufeff"


def test_an_unfinished_array_of_texts_is_an_error(tmp_path):
  (tmp_path / "part").write_bytes(b'[\n "one",\n "two"\n')
  with pytest.raises(UserError) as e:
    reading.read_any(str(tmp_path / "part"))
  assert e.value.code == "bad_json"


def test_escaped_backslashes_are_no_nul_characters(tmp_path):
  path = tmp_path / "a.jsonl"
  text = r"\u0000" * 9
  path.write_text(json.dumps({"text": text}))
  documents, _ = reading.read_documents(str(path))
  assert documents[0].text == text
  for before in ("", "\\"):
    path.write_text(json.dumps({"text": (before + "\0") * 9}))
    with pytest.raises(UserError) as e:
      reading.read_documents(str(path))
    assert e.value.code == "nul_characters"


def test_few_nul_characters_are_text(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"a\0b c")
  (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\u0000b"}')
  for name, text in (("a.txt", "a\0b c"), ("a.jsonl", "a\0b")):
    documents, _ = reading.read_documents(str(tmp_path / name))
    assert [d.text for d in documents] == [text]


def test_a_long_line_is_read(tmp_path):
  text = "word " * 1_000_000
  (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
  documents, _ = reading.read_documents(str(tmp_path / "a.jsonl"))
  assert len(documents[0].text.split()) == 1_000_000


def test_other_texts_by_name_are_documents(tmp_path):
  for name in ("a.md", "b.tex", "c", "d.txt"):
    (tmp_path / name).write_bytes(b"{\\bf a} text, with, commas")
    documents, _ = reading.read_documents(str(tmp_path / name))
    assert len(documents) == 1


@pytest.mark.parametrize(
  "missing, there, near",
  [
    ("nope.jsonl", "opt", False),
    ("nope.jsonl", "other.jsonl", False),
    ("test.jsonl", "train.jsonl", False),
    ("train.json", "train.jsonl", True),
    ("train.jsonl.gz", "train.jsonl", True),
    ("trian.jsonl", "train.jsonl", True),
    ("trian.jsonl", "train.csv", True),
    ("trian.jsonl", "train.xlsx", False),
    ("dataa", "data", True),
    ("dataa.jsonl", "data", False),
  ],
)
def test_only_a_near_name_of_the_kind_is_suggested(
  tmp_path, missing, there, near
):
  if "." in there:
    make(tmp_path, there)
  else:
    (tmp_path / there).mkdir()
  with pytest.raises(UserError) as e:
    reading.expand(str(tmp_path / missing))
  assert (e.value.code, e.value.file) == (
    "no_such_file", str(tmp_path / missing),
  )  # fmt: skip
  assert (str(tmp_path / there) in e.value.fix) == near
