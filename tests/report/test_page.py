"""Tests the report: its files, its text, and escaping."""

from __future__ import annotations

import html.parser
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from instructgpt_jax.report import conclusions, curves, page
from instructgpt_jax.report import results as results_lib
from tests.report.sample_results import leaf, make_results

EVIL = '</div><script>alert(1)</script><img src="http://x.test/a.png">'


class _Page(html.parser.HTMLParser):
  """Collects tags with attributes, and text outside of style.

  Attributes:
    tags: (name, attributes) of every tag.
    text: all text.
    headings: text of each section's heading.
    figures: title of the figure around each drawing.
  """

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.text = ""
    self.headings: list[str] = []
    self.figures: list[str] = []
    self.open: list[str] = []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag == "h2":
      self.headings.append("")
    elif tag == "svg":
      titles = [a.get("aria-label") for t, a in self.tags if t == "figure"]
      self.figures.append(titles[-1] if titles else "")
    if tag not in ("meta", "br", "link", "img", "input", "hr"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if not self.open or self.open[-1] != "style":
      self.text += data
    if self.open and self.open[-1] == "h2":
      self.headings[-1] += data


def test_page_and_json_contain_the_numbers(tmp_path):
  path = page.write_report(make_results(), tmp_path / "new" / "directory")
  assert path == tmp_path / "new" / "directory" / "report.html"
  report = json.loads((path.parent / "report.json").read_text())
  ptx = report["models"]["ppo_ptx"]
  for key in ("win_rate", "gold", "likert", "rm_score", "kl", "lm_loss"):
    assert set(ptx[key]) == {"mean", "low", "high"}
    assert set(ptx["greedy"][key]) == {"mean", "low", "high"}
  assert report["seconds"]["pretrain"] == 301.4
  parsed = _Page(path.read_text())
  assert not parsed.open  # every tag is closed in order
  text = " ".join(parsed.text.split())
  assert "PPO beats SFT in 62.6 % [60.1, 65.1]" in text
  assert "0.652 to 0.688" in text  # gold of ppo_ptx at temperature 1
  assert "5 min 01 s" in text
  assert '"ptx_coef": 1.0' in text


def test_the_page_opens_with_one_sentence_and_one_figure():
  parsed = _Page(page.render(make_results()))
  start = parsed.text[: parsed.text.index("Other findings")]
  start = " ".join(start[start.index("InstructGPT in") :].split())
  assert start.startswith(
    "InstructGPT in a small world InstructGPT in a small world A language model"
    " of 1.23 million parameters was trained by PPO with pretraining gradients"
    " (PPO-ptx): its answers beat those of supervised fine-tuning (SFT) in"
    " 60.8 % of comparisons (95 % interval 58.3 to 63.3 %), judged by the gold"
    " labeler of the world. Win rate against SFT "
  )
  assert parsed.figures[0] == "Win rate against SFT"
  assert start.count("Win rate against SFT") == 2  # the title and the axis
  findings = conclusions.verdict(make_results(), without="ppo_ptx")
  assert findings[0].startswith("PPO beats SFT") and len(findings) == 5
  assert all(finding in parsed.text for finding in findings)


def test_the_page_shows_every_figure_under_its_heading():
  parsed = _Page(page.render(make_results()))
  assert parsed.headings == [
    "Other findings",
    "Scores",
    "All numbers",
    "Failures",
    "Alignment tax",
    "Samples",
    "Learning curves",
    "Reward model, alignment tax and time of each stage",
    "How it was measured",
    "Configuration",
  ]
  assert parsed.figures == [
    "Win rate against SFT",
    "Gold score of each model",
    "Failures at temperature 1",
    "Failures at temperature 0",
    "Alignment tax: language-model loss",
    "Alignment tax: public tasks",
    "Pretraining",
    "Supervised fine-tuning",
    "Reward model",
    "Reinforcement learning",
  ]


OPENINGS = {
  "beats": (leaf(0.62, 0.02), "beat those of supervised fine-tuning (SFT) in"
            " 62.0 % of comparisons (95 % interval 60.0 to 64.0 %)"),
  "equal": (leaf(0.52, 0.03), "cannot be told from those of"),
  "loses": (leaf(0.40, 0.02), "lose to those of supervised fine-tuning (SFT),"
            " winning 40.0 %"),
  "unknown": (0.8, "win 80.0 % of comparisons with those of"),
  "few": (leaf(0.8, 0.1) | {"units": 11}, "on only 11 held-out prompts, too few"
          " to conclude anything, its answers win 80.0 % of comparisons (95 %"
          " interval 70.0 to 90.0 %)"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPENINGS)
def test_the_first_sentence_follows_the_interval(name):
  rate, words = OPENINGS[name]
  results = {"models": {"ppo": {"win_rate": rate}}, "judge": "a second model"}
  text = conclusions.opening(results)
  assert text.startswith("A language model was trained by PPO: ")
  assert words in text and text.endswith(", judged by a second model.")
  assert text.count(". ") == 0


def test_without_a_win_rate_the_first_sentence_has_the_score():
  models = {"base": {"gold": 0.2}, "sft": {"gold": leaf(0.55, 0.01)}}
  results = {"models": models, "model": {"parameters": 1_300_000_000}}
  assert conclusions.opening(results) == (
    "A language model of 1.3 billion parameters was trained by supervised"
    " fine-tuning (SFT): the mean gold score of its answers (0 to 1) is 0.550"
    " (95 % interval 0.540 to 0.560)."
  )
  assert conclusions.opening({"models": {"base": {"gold": 0.2}}}) == ""
  assert _Page(page.render(results)).figures == ["Gold score of each model"]


@pytest.mark.parametrize(
  "count, text",
  [
    (1_234_567, "1.23 million"),
    (999_900, "1 million"),
    (85_000, "85 thousand"),
    (175e9, "175 billion"),
    (7, "7 parameters"),
  ],
)
def test_parameters_are_counted_in_words(count, text):
  results = {"models": {"ppo": {"win_rate": 0.5}}}
  opening = conclusions.opening(results | {"model": {"parameters": count}})
  assert f"A language model of {text} " in opening


def test_rows_columns_and_sections_without_values_are_hidden():
  nothing = {"mean": None, "low": None, "high": None}
  models = {
    "sft": {"gold": leaf(0.5, 0.1), "likert": None, "kl": nothing},
    "ppo": {"gold": None, "failures": {}, "tasks": {"copy": None}},
    "ppo_ptx": {"gold": leaf(0.6, 0.1), "failures": {"odd": 0.0, "bad": 0.5}},
  }
  results = {
    "models": models,
    "samples": [{"prompt": "unanswered", "answers": {}}, {}],
    "curves": {"sft": {"loss": []}},
    "reward_model": {"accuracy": nothing},
    "seconds": {},
    "sources": {},
    "notes": [None, ""],
    "config": {},
  }
  parsed = _Page(page.render(results))
  assert parsed.headings == [
    "Other findings",
    "All numbers",
    "Failures",
  ]
  assert parsed.figures == [
    "Gold score of each model",
    "Failures at temperature 1",
  ]
  words = " ".join(parsed.text.split())
  assert "Not drawn, because it is 0 for every model: odd." in words
  for hidden in ("Likert", "KL", "temperature 0", "unanswered"):
    assert hidden not in words
  rows = [attributes for tag, attributes in parsed.tags if tag == "th"]
  assert sum(row["scope"] == "row" for row in rows) == 2 + 2  # PPO has no value
  lines = page.terminal_table(results).splitlines()
  assert not any(line.startswith("PPO ") for line in lines)


def test_samples_show_prompts_as_the_models_read_them():
  results = make_results()
  (sample, *_) = results["samples"]
  chat = "<|im_start|>user\nlist 2 animals<|im_end|>\n<|im_start|>assistant\n"
  prefixed = "<|im_start|>system\nBe polite.<|im_end|>\n" + chat
  sample["model_prompts"] = dict.fromkeys(sample["answers"], chat)
  sample["model_prompts"]["prompted"] = prefixed
  results["samples"] = [sample]
  parsed = _Page(page.render(results))
  text = parsed.text[parsed.text.index("Samples") :]
  assert text.count(chat) == 2  # once for all models, and once after the prefix
  assert text.index(chat) < text.index("base") < text.index(prefixed)
  assert sample["prompt"] not in text
  # A report without them shows the prompt that it has.
  del sample["model_prompts"]
  assert sample["prompt"] in _Page(page.render(results)).text


def test_page_is_self_contained_and_has_no_script():
  parsed = _Page(page.render(make_results()))
  names = {tag for tag, _ in parsed.tags}
  assert not names & {"script", "link", "img", "iframe", "object", "image"}
  for _, attributes in parsed.tags:
    for name, value in attributes.items():
      assert not name.startswith("on")
      if name in ("href", "src", "xlink:href"):
        assert value.startswith("#")
      for target in re.findall(r"url\(([^)]*)\)", value or ""):
        assert target.startswith("#")
  ids = [a["id"] for _, a in parsed.tags if "id" in a]
  used = {
    target
    for _, attributes in parsed.tags
    for value in attributes.values()
    for target in re.findall(r"(?:url\(|^)#([^)]+)\)?", value or "")
    if not re.fullmatch(r"[0-9a-fA-F]{3,8}", target)
  }
  assert used and used <= set(ids)


def test_text_from_a_model_is_escaped_everywhere():
  results = make_results()
  results["title"] = EVIL
  results["notes"] = [EVIL]
  results["judge"] = EVIL
  results["config"] = {EVIL: EVIL}
  results["samples"][0]["prompt"] = EVIL
  results["samples"][0]["answers"]["ppo"] = EVIL
  results["samples"][0]["answers"][EVIL] = "\ud800\x1b[31m\x00"
  results["models"][EVIL] = {"gold": leaf(0.5, 0.1), "tasks": {EVIL: 0.5}}
  results["curves"][EVIL] = {EVIL: [[0, 1.0], [1, 2.0]]}
  results["models"]["<i>短い</i>"] = {"gold": leaf(0.5, 0.1)}
  parsed = _Page(page.render(results))
  assert not parsed.open
  assert not {"script", "img"} & {tag for tag, _ in parsed.tags}
  assert parsed.text.count("<script>alert(1)</script>") >= 8
  assert "<i>短い</i>" in parsed.text  # in a picture, and not as a tag


def test_a_dollar_in_a_name_is_not_mathematics():
  results = {"models": {"$\\frac{": {"gold": leaf(0.5, 0.1)}}}
  assert "$\\frac{" in _Page(page.render(results)).text


@pytest.mark.parametrize(
  "missing", [[key] for key in make_results()] + [list(make_results())]
)
def test_missing_parts_are_absent(missing, tmp_path):
  results = make_results()
  for key in missing:
    del results[key]
  page.write_report(results, tmp_path)
  text = (tmp_path / "report.html").read_text()
  assert not _Page(text).open
  heads = {
    "samples": "Samples",
    "curves": "Learning curves",
    "models": "Scores",
    "notes": "How it was measured",
    "config": "Configuration",
  }
  for key, head in heads.items():
    assert (head in _Page(text).headings) == (key not in missing)
  assert isinstance(page.terminal_table(results), str)


def test_any_single_malformed_value_is_tolerated():
  """Each node of the results in turn replaced by each odd value."""

  def paths(tree, prefix=()):
    if isinstance(tree, dict):
      for key in tree:
        yield (*prefix, key)
        yield from paths(tree[key], (*prefix, key))
    elif isinstance(tree, list) and tree:
      yield (*prefix, 0)
      yield from paths(tree[0], (*prefix, 0))

  results = make_results()
  results["curves"] = {"ppo": {"kl": [[0, 1.0], [1, 2.0]]}}
  for name in ("base", "prompted", "best_of_n", "ppo"):
    del results["models"][name]
  places = list(paths(results))
  assert len(places) > 150
  for place in places:
    for odd in (None, float("nan"), "odd", [], {}, [[1]], {"mean": "x"}):
      changed = json.loads(json.dumps(results))
      at = changed
      for key in place[:-1]:
        at = at[key]
      at[place[-1]] = odd
      tidied = results_lib.tidy(changed)
      json.dumps(tidied, allow_nan=False)
      page.terminal_table(changed)
  for place in places[::50]:  # drawing is slower
    changed = json.loads(json.dumps(results))
    at = changed
    for key in place[:-1]:
      at = at[key]
    at[place[-1]] = "odd"
    page.render(changed)


def test_numbers_that_are_not_finite_become_null(tmp_path):
  results = {
    "models": {
      "sft": {"gold": {"mean": math.nan, "low": math.inf, "high": 1.0}},
      "ppo": {"gold": {"mean": np.float32(0.5), "low": 0.25, "high": 0.75}},
    },
    "curves": {"ppo": {"kl": np.array([[0, 1.0], [1, np.nan]])}},
  }
  page.write_report(results, tmp_path)
  report = json.loads(
    (tmp_path / "report.json").read_text(),
    parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
  )
  assert report["models"]["sft"]["gold"]["mean"] is None
  assert report["models"]["ppo"]["gold"]["mean"] == 0.5
  assert report["curves"]["ppo"]["kl"] == [[0, 1.0], [1, None]]


def test_terminal_table_is_narrow_and_complete():
  lines = page.terminal_table(make_results()).splitlines()
  assert max(map(len, lines)) <= 100
  row = next(line for line in lines if line.startswith("PPO-ptx"))
  assert row.split()[1:] == [
    "0.670±0.018",
    "0.608±0.025",
    "5.02±0.11",
    "0.68±0.09",
    "0.54±0.05",
    "0.728±0.006",
    "8.3",
    "0.87",
  ]
  narrow = page.terminal_table(make_results(), width=60).splitlines()
  assert max(map(len, narrow)) <= 60
  assert sum(line.startswith("PPO-ptx ") for line in narrow) > 2


def test_terminal_table_removes_control_characters():
  results = make_results()
  results["title"] = "a\x1b[2Jb"
  results["models"]["x\x1b]0;y\x07"] = {"gold": 0.5}
  text = page.terminal_table(results)
  assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


@pytest.mark.parametrize(
  "rate, words",
  [
    ((0.62, 0.60, 0.64), "PPO-ptx beats SFT"),
    ((0.52, 0.49, 0.55), "PPO-ptx cannot be told from SFT"),
    ((0.40, 0.38, 0.42), "PPO-ptx loses to SFT"),
  ],
)
def test_verdict_follows_the_interval(rate, words):
  mean, low, high = rate
  models = {"ppo_ptx": {"win_rate": {"mean": mean, "low": low, "high": high}}}
  (sentence,) = conclusions.verdict({"models": models})
  assert sentence.startswith(words)
  assert f"{100 * mean:.1f}" in sentence


@pytest.mark.parametrize(
  "sft, ptx, words",
  [
    (leaf(0.5, 0.02), leaf(0.6, 0.02), "no interval overlaps"),
    (leaf(0.5, 0.06), leaf(0.6, 0.06), "of SFT and PPO-ptx overlap"),
    (leaf(0.6, 0.02), leaf(0.5, 0.02), "broken between SFT and PPO-ptx"),
  ],
)
def test_verdict_on_the_order(sft, ptx, words):
  models = {"sft": {"gold": sft}, "ppo_ptx": {"gold": ptx}}
  (sentence,) = conclusions.verdict({"models": models})
  assert words in sentence


def test_share_of_the_tax_removed():
  models = {
    "base": {"lm_loss": 0.7},
    "ppo": {"lm_loss": 0.9},
    "ppo_ptx": {"lm_loss": 0.75},
  }
  share = results_lib.removed_by_ptx({"models": models})
  assert share is not None and share.mean == pytest.approx(0.75)
  models["ppo"]["lm_loss"] = 0.7
  assert results_lib.removed_by_ptx({"models": models}) is None


def test_without_gold_the_page_shows_the_judge_and_its_score():
  models = {
    name: {"gold": None, "judge_score": leaf(score, 0.1), "win_rate": None}
    for name, score in (("sft", 0.1), ("ppo_ptx", 0.9))
  }
  judge = "second reward model trained on held-out rankings"
  results = {"models": models, "judge": judge}
  text = " ".join(_Page(page.render(results)).text.split())
  assert "No gold labeler exists" in text and judge in text
  assert "Judge's score of each model" in text
  assert "Gold score" not in text


def test_an_old_report_survives_a_failed_write(tmp_path, monkeypatch):
  page.write_report({"title": "old"}, tmp_path)
  monkeypatch.setattr(
    page.files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, ""))
  )
  with pytest.raises(page.files.UserError, match="disk is full"):
    page.write_report({"title": "new"}, tmp_path)
  assert json.loads((tmp_path / "report.json").read_text())["title"] == "old"
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ["report.html", "report.json"]


def test_same_results_give_the_same_page():
  assert page.render(make_results()) == page.render(make_results())


def test_curves_are_read_thinned_and_selected(tmp_path):
  folder = tmp_path / "ppo"
  folder.mkdir()
  lines = [json.dumps({"step": s, "kl": s / 2, "x": 1}) for s in range(1000)]
  lines[3] = json.dumps({"step": 3, "kl": "nan", "x": 1})
  torn = '{"step": 1000, "kl'
  (folder / "metrics.jsonl").write_text("\n".join([*lines, torn]))
  every = curves.read_curves(tmp_path, ["ppo", "sft"], points=5000)
  assert set(every) == {"ppo"} and set(every["ppo"]) == {"kl", "x"}
  assert len(every["ppo"]["kl"]) == 999  # without the nan and the torn line
  assert every["ppo"]["kl"][3] == [4, 2.0]
  thin = curves.read_curves(tmp_path, {"ppo": ["x", "none"]}, points=10)
  assert thin == {"ppo": {"x": [[100 * i + 99, 1.0] for i in range(10)]}}
  means = curves.read_curves(tmp_path, {"ppo": ["kl"]}, points=3)["ppo"]["kl"]
  assert means[-1] == [999, pytest.approx((667 + 999) / 4)]


def test_command_shows_a_report_and_names_a_missing_one(tmp_path):
  page.write_report(make_results(), tmp_path)
  (tmp_path / "report.html").unlink()
  command = [sys.executable, "-m", "instructgpt_jax.report"]
  picture = tmp_path / "a.svg"
  done = subprocess.run(
    [*command, str(tmp_path), "--page", f"--picture={picture}"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "PPO-ptx" in done.stdout
  assert (tmp_path / "report.html").exists()
  assert picture.read_text().startswith("<svg ")
  for wrong in (
    [str(tmp_path / "none")],
    [str(tmp_path), f"--picture={tmp_path / 'a.png'}"],
  ):
    done = subprocess.run([*command, *wrong], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) <= 3
    assert "Traceback" not in done.stderr


def _chromium() -> str | None:
  for name in ("chromium", "chromium-browser", "google-chrome"):
    if path := shutil.which(name):
      return path
  return None


@pytest.mark.skipif(_chromium() is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [400, 1280])
def test_page_fits_its_window(width, tmp_path):
  """A frame of the given width must not scroll sideways."""
  results = make_results()
  results["samples"][0]["answers"]["ppo"] = "x" * 400
  results["samples"][0]["prompt"] = "word " * 100
  page.write_report(results, tmp_path)
  holder = tmp_path / "holder.html"
  holder.write_text(
    f'<iframe id="f" src="report.html" style="width:{width}px;height:900px;'
    'border:0"></iframe><script>onload = () => {const d = '
    'document.getElementById("f").contentDocument.documentElement;'
    'document.title = "sizes " + d.scrollWidth + " " + d.clientWidth + " " + '
    "Math.min(...Array.from(d.querySelectorAll('svg.figure')).map(s => "
    "s.getBoundingClientRect().width))}</script>"
  )
  done = subprocess.run(
    [
      str(_chromium()),
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--allow-file-access-from-files",
      f"--user-data-dir={tmp_path / 'profile'}",
      "--window-size=1600,1000",
      "--virtual-time-budget=2000",
      "--dump-dom",
      f"file://{pathlib.Path(holder)}",
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )
  match = re.search(r"<title>sizes (\d+) (\d+) ([\d.]+)", done.stdout)
  assert match, done.stderr[-2000:]
  scroll, client, narrowest = map(float, match.groups())
  assert client <= width
  assert scroll <= client
  assert narrowest >= 340


def test_weighted_sources_are_listed():
  results = make_results()
  assert "Weighted sources" not in page.render(results)
  part = {
    "source": "a<b>.jsonl", "weight": 0.7, "passes": 2.25, "rows_share": 0.7,
    "loss_tokens_share": 0.681,
  }  # fmt: skip
  results["sources"] = {
    "policy_init": {"data.demonstrations": [part]},
    "ppo": {"data.prompts": [{"source": "p.csv", "prompts_share": None}, 3]},
    "reward": None,
  }
  text = page.render(results)
  assert "Weighted sources" in text and "a&lt;b&gt;.jsonl" in text
  row = text[text.index("a&lt;b&gt;.jsonl") :]
  cells = re.findall(r"<td[^>]*>([^<]*)", row)[:4]
  assert [cell.strip() for cell in cells] == ["0.700", "0.700", "0.681", "2.25"]
