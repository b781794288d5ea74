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

from instructgpt_jax.report import curves, page
from instructgpt_jax.report import results as results_lib
from tests.report.sample_results import leaf, make_results

EVIL = '</div><script>alert(1)</script><img src="http://x.test/a.png">'


class _Page(html.parser.HTMLParser):
  """Collects tags with attributes, and text outside of style."""

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.text = ""
    self.open: list[str] = []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ("meta", "br", "link", "img", "input", "hr"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if not self.open or self.open[-1] != "style":
      self.text += data


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
  assert "PPO-ptx beats SFT in 60.8 % [58.3, 63.3]" in text
  assert "0.652 to 0.688" in text  # gold of ppo_ptx at temperature 1
  assert "5 min 01 s" in text
  assert '"ptx_coef": 1.0' in text
  assert sum(tag == "svg" for tag, _ in parsed.tags) == 10


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
    "samples": "<h2>Samples",
    "curves": "<h2>Learning curves",
    "models": "<h2>Which answers",
    "config": "<h2>Configuration",
  }
  for key, head in heads.items():
    assert (head in text) == (key not in missing)
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
  (sentence,) = results_lib.verdict({"models": models})
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
  (sentence,) = results_lib.verdict({"models": models})
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
    "d.querySelectorAll('svg.figure').length + ' ' + Math.min(..."
    "Array.from(d.querySelectorAll('svg.figure')).map(s => "
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
  match = re.search(r"<title>sizes (\d+) (\d+) (\d+) ([\d.]+)", done.stdout)
  assert match, done.stderr[-2000:]
  scroll, client, svgs, narrowest = map(float, match.groups())
  assert client <= width
  assert scroll <= client
  assert svgs == 10
  assert narrowest >= 340
