"""Samples of a training as a table, and as a page that is filtered by CSS."""

import html.parser
import json

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.report import __main__ as command
from instructgpt_jax.report import page, samples_table, training_samples

EVIL = '</td><script>alert(1)</script> <b>"'


def line(step, index, reward, **more):
  return {
    "step": step,
    "iteration": step // 2,
    "index": index,
    "prompt": f"<|user|>What is {index}?\nA:",
    "response": f"answer {step} {index}",
    "reward": reward,
    "kl": 0.5,
    "length": step + index + 1,
    "stop_reason": "limit" if index else "end",
    **more,
  }


ROWS = [
  line(step, index, reward=index * 10.0 - step)
  for step in (0, 2, 4)
  for index in (0, 1)
]


def write(directory, rows):
  directory.mkdir(parents=True, exist_ok=True)
  (directory / "samples.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in rows)
  )


def table(capsys, *argv):
  """Returns the lines that the command prints below the table's head."""
  assert command.main([str(arg) for arg in argv]) == 0
  lines = capsys.readouterr().out.splitlines()
  return [x for x in lines if "answer" in x]


def test_the_table_has_all_columns_of_each_sample(tmp_path, capsys):
  write(tmp_path, ROWS)
  assert command.main([str(tmp_path), "--samples"]) == 0
  lines = capsys.readouterr().out.splitlines()
  head = lines[2].split()
  assert head == [
    "step", "iteration", "index", "reward", "kl", "length", "stop_reason",
    "prompt", "response",
  ]  # fmt: skip
  body = [x for x in lines if "answer" in x]
  assert len(body) == 6
  assert body[3].split()[:7] == ["2", "1", "1", "8", "0.5", "4", "limit"]
  assert "What is 1? A:" in body[3] and body[3].endswith("answer 2 1")


@pytest.mark.parametrize(
  ("flags", "responses"),
  [
    (["--iteration=1"], ["2 0", "2 1"]),
    (["--step=4", "--prompt=1"], ["4 1"]),
    (["--prompt=0"], ["0 0", "2 0", "4 0"]),
    (["--stop_reason=limit"], ["0 1", "2 1", "4 1"]),
    (["--sort=reward"], ["4 0", "2 0", "0 0", "4 1", "2 1", "0 1"]),
    (["--sort=-length", "--stop_reason=end"], ["4 0", "2 0", "0 0"]),
  ],
)
def test_samples_are_chosen_and_sorted(flags, responses, tmp_path, capsys):
  write(tmp_path, ROWS)
  lines = table(capsys, tmp_path, "--samples", *flags)
  assert [x.rsplit("answer ")[-1] for x in lines] == responses


def test_a_pipeline_shows_all_of_its_stages(tmp_path, capsys):
  for stage in ("ppo", "another", "sft"):
    write(tmp_path / stage, ROWS)
  assert command.main([str(tmp_path), "--samples"]) == 0
  names = [x for x in capsys.readouterr().out.splitlines() if x.isalpha()]
  assert names == ["sft", "ppo", "another"]


def test_long_texts_are_shortened_to_the_width():
  long = line(1, 0, 1.0, prompt="x" * 500 + "end", response="y" * 500)
  lines = samples_table.terminal_table([long], 120).splitlines()
  assert max(map(len, lines)) <= 120
  assert "xend" in lines[2]


def test_control_characters_do_not_reach_the_terminal():
  row = line(1, 0, 1.0, response="a\x1b[2Jb\nc")
  text = samples_table.terminal_table([row], 100)
  assert "\x1b" not in text and "\nc" not in text


@pytest.mark.parametrize(
  ("flags", "code"),
  [
    (["--samples", "--sort=beauty"], "unknown_column"),
    (["--samples", "--iteration=9"], "no_such_sample"),
    (["--samples", "--picture=a.svg"], "unused_flag"),
    (["--sort=reward"], "unused_flag"),
  ],
)
def test_wrong_choices_are_refused(flags, code, tmp_path, monkeypatch):
  write(tmp_path, ROWS)
  errors = []

  def run(body):
    with pytest.raises(UserError) as error:
      body()
    errors.append(error.value)

  monkeypatch.setattr(command.launch, "run_with_errors", run)
  command.main([str(tmp_path), *flags])
  assert errors[0].code == code and errors[0].fix


def test_a_directory_without_samples_is_an_error(tmp_path):
  with pytest.raises(UserError) as error:
    training_samples.require_stages(tmp_path)
  assert (error.value.code, error.value.file) == ("no_samples", str(tmp_path))


def test_a_line_that_is_no_sample_is_an_error(tmp_path):
  write(tmp_path, [*ROWS[:2], {"step": 1, "prompt": "a"}])
  with pytest.raises(UserError) as error:
    training_samples.read_stages(tmp_path)
  assert (error.value.code, error.value.line) == ("bad_sample", 3)


class _Parser(html.parser.HTMLParser):
  """Collects tags, classes of rows, and the values of filters."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.rows, self.values = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    self.tags.append(tag)
    if tag == "tr" and "class" in attributes:
      self.rows.append(attributes["class"].split())
    if tag == "input" and "value" in attributes:
      self.values.append(attributes["value"])


def test_the_page_groups_by_prompt_and_each_filter_hides_the_rest(tmp_path):
  write(tmp_path, [*ROWS, line(6, 0, "nan", response=EVIL)])
  path = samples_table.write_page(tmp_path)
  text = path.read_text()
  parsed = _Parser(text)
  assert "script" not in parsed.tags and "b" not in parsed.tags
  assert parsed.tags.count("details") == 2  # prompts
  assert len(parsed.rows) == 7
  classes = {name for row in parsed.rows for name in row}
  assert classes <= set(parsed.values)
  for value in parsed.values:
    rule = f'.browse:has(input[value="{value}"]:checked) tbody tr:not(.{value})'
    assert rule in text, value
  # Each answer is in one third of the lengths, and thirds are in order.
  thirds = {"low": [], "middle": [], "high": []}
  lengths = [1, 3, 5, 7, 2, 4, 6]  # by prompt, then by step
  for row, length in zip(parsed.rows, lengths, strict=True):
    (third,) = [c for c in row if c.startswith("length-")]
    thirds[third.removeprefix("length-")].append(length)
  assert max(thirds["low"]) < min(thirds["middle"])
  assert max(thirds["middle"]) < min(thirds["high"])


def test_a_report_shows_the_samples_of_its_stages(tmp_path):
  write(tmp_path / "ppo", ROWS)
  stages = training_samples.read_stages(tmp_path, sets=2)
  assert {row["step"] for row in stages["ppo"]} == {0, 4}
  text = page.render({"training_samples": stages})
  assert "Answers during the training" in text and "answer 4 1" in text
  assert "Answers during the training" not in page.render({})
