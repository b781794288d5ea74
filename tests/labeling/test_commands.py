"""The command line: projects, links, exports, agreement, and its errors."""

import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import types

import pytest

from instructgpt_jax.cli import listening
from instructgpt_jax.data.records import Prompt, Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import (
  assignment,
  labels,
  packages,
  project,
  sampling,
  server,
  simulated,
  store,
)
from instructgpt_jax.labeling.commands import main
from instructgpt_jax.labeling.people import invitations
from tests.interop import tiny

for package in packages.PACKAGES:
  tiny.library(package)

ROOT = pathlib.Path(__file__).parent.parent.parent
ANSWERS = [
  {"prompt": f"prompt {i}", "completions": [f"a{i}", f"b{i}", f"c{i}"]}
  for i in range(4)
]
LINK = re.compile(r"http://127\.0\.0\.1:8765/invitation#([\w-]{20,})")


@pytest.fixture
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "answers.jsonl", ANSWERS)
  return tmp_path


def write(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(*arguments):
  return main.main(list(arguments))


def create(*arguments):
  assert run("create", "--store=labels.db", *arguments) == 0


def error_of(capsys, *arguments):
  """Runs a command that fails, and returns its error's lines."""
  capsys.readouterr()
  assert run(*arguments) == 2
  lines = capsys.readouterr().err.splitlines()
  assert lines[0].startswith("error: ") and 1 < len(lines) < 4
  assert lines[-1].startswith("  fix: ")
  return "\n".join(lines)


def test_create_writes_a_project_and_its_store(here, capsys):
  create("--rank=answers.jsonl", "--overlap=2", "--title=Mine", "--write=3")
  output = capsys.readouterr().out
  assert json.loads((here / "PROJECT.json").read_text()) == {
    "title": "Mine",
    "instructions": "instructions.md",
    "overlap": 2,
    "items": [
      {"task": "ranking", "file": "answers.jsonl"},
      {"task": "demonstration", "count": 3},
    ],
  }
  assert "7 of 7 items are new" in output
  opened = store.open_store("labels.db")
  token = LINK.findall(output)[0]
  assert invitations.read_invitation(opened, token, 0.0).role == "owner"
  assert project.read_settings(opened).overlap == 2
  assert "helpful" in project.read_instructions(opened)[1].lower()
  opened.close()


def test_a_project_in_another_directory_names_its_files(here):
  (here / "sub").mkdir()
  create("--project=sub/PROJECT.json", "--rank=answers.jsonl")
  value = json.loads((here / "sub" / "PROJECT.json").read_text())
  assert value["items"][0]["file"] == "../answers.jsonl"


def test_create_does_not_replace_a_project(here, capsys):
  create("--rank=answers.jsonl")
  before = (here / "PROJECT.json").read_bytes()
  text = error_of(capsys, "create", "--store=labels.db", "--rank=answers.jsonl")
  assert "PROJECT.json" in text and "exists already" in text
  assert (here / "PROJECT.json").read_bytes() == before
  for flag in ("--title=x", "--overlap=2", "--instructions=x.md"):
    text = error_of(capsys, "create", "--store=labels.db", flag)
    assert flag.partition("=")[0] in text
  # Without content it brings the store up to the project.
  create()
  assert "0 of 4 items are new" in capsys.readouterr().out
  opened = store.open_store("labels.db")
  project.write_instructions(opened, "of the page", 1.0)
  opened.close()
  create()
  assert "older version; version 2 stays" in capsys.readouterr().out


def test_add_adds_to_the_project_and_its_store(here, capsys):
  create("--rank=answers.jsonl")
  write(here / "more.jsonl", [{"prompt": "new", "completions": ["x", "y"]}])
  assert run("add", "--store=labels.db", "--compare=more.jsonl") == 0
  assert "1 of 5 items are new" in capsys.readouterr().out
  value = json.loads((here / "PROJECT.json").read_text())
  assert value["items"][1] == {"task": "comparison", "file": "more.jsonl"}
  assert "nothing to add" in error_of(capsys, "add", "--store=labels.db")


@pytest.mark.parametrize(
  "lines, expected",
  [
    ([], "answers.jsonl:1"),
    ([{"prompt": "p", "completions": ["a", "a"]}], "answers are equal"),
    ([{"prompt": "", "completions": ["a", "b"]}], "answers.jsonl:1 [prompt]"),
    ([{"completions": ["a", "b"]}], "answers.jsonl:1 [prompt]"),
  ],
)
def test_bad_answers_leave_nothing_behind(here, capsys, lines, expected):
  write(here / "answers.jsonl", lines)
  text = error_of(capsys, "create", "--store=labels.db", "--rank=answers.jsonl")
  assert expected in text
  assert [path.name for path in here.iterdir()] == ["answers.jsonl"]


@pytest.mark.parametrize(
  "arguments, expected",
  [
    ([], "COMMAND"),
    (["serv"], "serv"),
    (["create"], "--store"),
    (["create", "--store=labels.db"], "no items"),
    (["create", "--store=labels.db", "--overlap=0"], "--overlap"),
    (["create", "--store=no/labels.db", "--rank=answers.jsonl"], "no"),
    (["serve", "--store=labels.db"], "labels.db"),
    (["serve", "--store=labels.db", "--project=no.json"], "no.json"),
    (["invite", "--store=labels.db"], "labels.db"),
    (["export", "--store=labels.db", "--to=out"], "labels.db"),
    (["agreement", "--store=answers.jsonl"], "answers.jsonl"),
    (["export", "--store=x", "--to=out", "--valid_fraction=2"], "from 0 to 1"),
    (["create", "--store=labels.db", "--prompts=answers.jsonl"],
     "--sample_from"),
    (["create", "--store=labels.db", "--sample_from=a"], "--prompts"),
    (["create", "--store=labels.db", "--rank=answers.jsonl",
      "--task=comparison"], "--task"),
    (["create", "--store=labels.db", "--prompts=answers.jsonl",
      "--sample_from=a,b,c", "--completions=2"], "--completions"),
    (["create", "--store=labels.db", "--prompts=answers.jsonl",
      "--sample_from=a", "--task=comparison"], "--sample_from"),
    (["create", "--store=labels.db", "--prompts=answers.jsonl",
      "--sample_from=missing", "--answers=sampled.jsonl"], "missing"),
    (["create", "--store=labels.db", "--prompts=answers.jsonl",
      "--sample_from=a"], "--answers"),
    (["serve", "--store=labels.db", "--host=0.0.0.0"], "--names"),
  ],
)  # fmt: skip
def test_errors_name_what_is_wrong(here, capsys, arguments, expected):
  assert expected in error_of(capsys, *arguments)
  assert [path.name for path in here.iterdir()] == ["answers.jsonl"]


def test_help_of_each_command(capsys):
  for arguments in (
    [], ["create"], ["add"], ["serve"], ["invite"], ["export"], ["agreement"],
    ["example"],
  ):  # fmt: skip
    with pytest.raises(SystemExit) as caught:
      run(*arguments, "--help")
    assert caught.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_invitations(here, capsys):
  create("--rank=answers.jsonl")
  capsys.readouterr()
  arguments = "--role=labeler --count=3 --held_out --days=2 --note=friends"
  assert run("invite", "--store=labels.db", *arguments.split()) == 0
  tokens = LINK.findall(capsys.readouterr().out)
  assert len(set(tokens)) == 3
  opened = store.open_store("labels.db")
  invitation = invitations.read_invitation(opened, tokens[0], 0.0)
  opened.close()
  assert (invitation.role, invitation.held_out) == ("labeler", True)
  assert invitation.expires_at - invitation.created_at == 2 * 86400
  text = error_of(
    capsys, "invite", "--store=labels.db", "--role=owner", "--held_out"
  )
  assert "held out" in text


def label_everything(path, overlap):
  """Lets `overlap` people rank all items: the first answer is best."""
  opened = store.open_store(path)
  rules = project.read_settings(opened).rules()
  for number in range(overlap):
    token = invitations.invite(opened, "labeler", 1.0)
    user = invitations.accept_invitation(
      opened, token, f"user {number}", "a long password", 1.0
    )
    while work := assignment.next_item(opened, user.id, rules, 2.0):
      content = {
        "ranks": [1, 2, 2],
        "overall": [7, 3, 3],
        "flags": [{}, {}, {}],
        "notes": "",
        "cannot_judge": None,
      }
      labels.submit(
        opened, labels.Save(user.id, work.assignment_id, content, 0), rules, 3.0
      )
  opened.close()


def test_export_and_agreement(here, capsys):
  create("--rank=answers.jsonl", "--overlap=2")
  label_everything("labels.db", 2)
  capsys.readouterr()
  assert run("agreement", "--store=labels.db") == 0
  output = capsys.readouterr().out
  # 4 items, of whose 3 pairs one is a tie.
  assert "100.0 ± 0.0 % of 8 pairs (4 ties excluded)" in output
  assert "α of ranks: 1.000" in output
  assert "labeler user 1" in output

  assert run("export", "--store=labels.db", "--to=out") == 0
  assert "rankings: 8 records" in capsys.readouterr().out
  lines = (here / "out" / "rankings.jsonl").read_text().splitlines()
  assert [json.loads(line)["ranks"] for line in lines] == [[1, 2, 2]] * 8
  assert run("export", "--store=labels.db", "--to=out", "--format=parquet") == 0
  assert {path.name for path in (here / "out").iterdir()} == {
    "rankings.parquet", "prompts.parquet", "export.json"
  }  # fmt: skip


def test_the_server_answers_and_ends_at_sigterm(here, capsys):
  create("--rank=answers.jsonl")
  command = [sys.executable, "-m", "instructgpt_jax.labeling", "serve"]
  with subprocess.Popen(
    [*command, f"--store={here / 'labels.db'}", "--port=0"],
    stderr=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  ) as process:
    line = process.stderr.readline()
    port = int(re.findall(r"http://127\.0\.0\.1:(\d+) ", line)[0])
    client = simulated.Client("127.0.0.1", port)
    assert client.get("/login")["csrf"]
    client.close()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  assert f"owner: http://127.0.0.1:{port}/invitation#" in output
  assert errors == ""


def test_a_port_in_use_is_named(here, capsys):
  create("--rank=answers.jsonl")
  with socket.create_server(("127.0.0.1", 0)) as other:
    port = other.getsockname()[1]
    text = error_of(capsys, "serve", "--store=labels.db", f"--port={port}")
  assert str(port) in text and "--port=0" in text


def test_hosts_under_which_the_server_answers():
  assert server.Address().hosts() == listening.LOOPBACK
  address = server.Address(host="10.0.0.7", names=("labels.example",))
  assert address.hosts() == (*listening.LOOPBACK, "10.0.0.7", "labels.example")
  assert address.is_exposed()
  assert not server.Address(host="10.0.0.7", https=True).is_exposed()
  assert not server.Address().is_exposed()
  named = server.Address(host="0.0.0.0", names=("a",))
  assert named.hosts() == (*listening.LOOPBACK, "a")


# Sampling.


class Session:
  """A model that answers with its name and the number of the answer."""

  max_prompt = 3

  def __init__(self, name, answers=None):
    self.name, self.answers = name, answers
    self.prompts = []

  def encode(self, turns):
    return turns[-1].text.split()

  def answer_batch(self, prompts, progress, batch_size):
    self.prompts += prompts
    return [
      (self.answers or f"{self.name} {i} {' '.join(ids)}", True)
      for i, ids in enumerate(prompts)
    ]


def prompts(*texts, **fields):
  return [Prompt(turns=(Turn("user", text),), **fields) for text in texts]


def sample(texts, sessions, **options):
  return sampling.sample_answers(
    prompts(*texts, user_id="u", split="valid"),
    list(sessions),
    sessions.__getitem__,
    progress=None,
    **{"completions": 5, "seed": 0, **options},
  )


def test_answers_are_divided_among_stages():
  sessions = {name: Session(name) for name in ("sft", "ppo")}
  sampled = sample([f"p{i}" for i in range(40)], sessions)
  assert len(sampled.records) == 40 and sampled[1:] == (0, 0)
  orders = set()
  for record in sampled.records:
    pairs = list(zip(record["completions"], record["sources"], strict=True))
    assert all(text.startswith(source) for text, source in pairs)
    assert sorted(record["sources"]) == ["ppo"] * 2 + ["sft"] * 3
    assert (record["user_id"], record["split"]) == ("u", "valid")
    orders.add(tuple(record["sources"]))
  assert len(orders) > 5  # in random order
  again = sample([f"p{i}" for i in range(40)], sessions)
  assert again == sampled


def test_equal_answers_are_one_and_either_models():
  sessions = {name: Session(name, "same") for name in ("a", "b")}
  sessions["c"] = Session("c")
  sampled = sample([f"p{i}" for i in range(40)], sessions, completions=3)
  firsts = set()
  for record in sampled.records:
    assert len(record["completions"]) == 2
    position = record["completions"].index("same")
    firsts.add(record["sources"][position])
  assert firsts == {"a", "b"}


def test_prompts_without_two_answers_are_counted():
  sessions = {"a": Session("a")}
  sampled = sample(["one two three four", "short"], sessions)
  assert (len(sampled.records), sampled.too_long, sampled.equal) == (1, 1, 0)
  with pytest.raises(UserError) as caught:
    sample(["p", "q"], {"a": Session("a", " ")})
  assert caught.value.code == "no_items"


def test_comparisons_are_between_models():
  record = {
    "prompt": [],
    "completions": ["x", "y", "z"],
    "sources": ["a", "a", "b"],
  }
  pairs = sampling.pair_records([record])
  assert [pair["completions"] for pair in pairs] == [["x", "z"], ["y", "z"]]
  assert [pair["sources"] for pair in pairs] == [["a", "b"], ["a", "b"]]


def test_create_samples_from_stages(here, capsys, monkeypatch):
  from instructgpt_jax.chat import engine

  loaded = []

  def load(stage, options):
    loaded.append((stage, options.temperature, options.seed))
    return Session(stage)

  monkeypatch.setattr(engine, "load_session", load)
  write(here / "prompts.jsonl", [{"prompt": f"p{i}"} for i in range(9)])
  (here / "answers.jsonl").unlink()
  create(
    "--prompts=prompts.jsonl", "--sample_from=runs/sft/,runs/ppo",
    "--completions=4", "--num_prompts=5", "--seed=3", "--temperature=0.7",
  )  # fmt: skip
  assert loaded == [("runs/sft", 0.7, 3), ("runs/ppo", 0.7, 4)]
  rows = (here / "answers.jsonl").read_text().splitlines()
  assert len(rows) == 5
  assert set(json.loads(rows[0])["sources"]) == {"runs/sft", "runs/ppo"}
  assert "5 of 5 items are new" in capsys.readouterr().out


# The example.


def test_the_example_has_labels_and_open_items(here, monkeypatch, capsys):
  served = []
  monkeypatch.setattr(
    server, "serve", lambda opened, *_, **options: served.append(options)
  )
  assert run("example", "--workdir=ex", "--demo=none") == 0
  count = int(re.findall(r"submitted (\d+) labels", capsys.readouterr().out)[0])
  assert count > 100 and len(served) == 1
  assert run("example", "--workdir=ex", "--demo=none") == 0
  output = capsys.readouterr().out
  assert "submitted" not in output and "0 of " in output
  assert run("agreement", "--store=ex/labels.db") == 0
  output = capsys.readouterr().out
  assert "ranking: agreement" in output and "held out" in output
  assert "pair labeler 01 and labeler 02" in output and "gold items" in output
  (here / "other").mkdir()
  (here / "other" / "file").touch()
  assert "--workdir" in error_of(capsys, "example", "--workdir=other")


def test_the_example_takes_the_demo_s_answers(here):
  from instructgpt_jax.labeling import example
  from instructgpt_jax.world import write as world_write

  demo = here / "demo"
  (demo / "rankings").mkdir(parents=True)
  (demo / "world").mkdir()
  (demo / "world" / "world.json").write_text('{"seed": 3, "prefixes": []}')
  world = world_write.load_world(demo / "world")
  write(
    demo / "rankings" / "round_1.jsonl",
    [
      {
        "prompt": text,
        "completions": ["x", "y", "x"],
        "ranks": [1, 2, 1],
        "split": "train",
      }
      for _, text in world_write.draw_prompts(world, "train", 70, 0)
    ],
  )
  path, world = example.write_example("ex", str(demo))
  made = project.read_project(path)
  items, _ = project.read_items(made)
  ranking = [i for i in items if i.task == "ranking"]
  assert len(ranking) == 60
  assert ranking[0].payload["completions"] == ["x", "y"]
  comparisons = [i for i in items if i.task == "comparison"]
  assert comparisons and all(i.payload["sources"] for i in comparisons)
  assert world.seed == 3


def test_a_missing_package_is_named(capsys, monkeypatch):
  def missing(name):
    if name == "krippendorff":
      raise ImportError(name)
    return types.ModuleType(name)

  monkeypatch.setattr(packages.importlib, "import_module", missing)
  text = error_of(capsys, "agreement", "--store=x")
  assert "krippendorff" in text and "labeling" in text
