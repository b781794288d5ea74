"""Tests the page of the studies: its text, its figures, and escaping."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pathlib
import re
import subprocess
import urllib.parse
import xml.etree.ElementTree as ElementTree

import pytest

from instructgpt_jax.report import findings
from instructgpt_jax.report import study_page as page
from instructgpt_jax.report.findings import Table
from instructgpt_jax.statistics import Interval
from tests.report.sample_studies import make_results
from tests.report.test_page import EVIL, _chromium, _Page

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
SMALL = ("model_size", "ptx_coef", "failures")


def _verdicts(*outcomes, **more) -> dict:
  return {
    "verdicts": {
      f"s{at}": {"title": f"S {at}", "reproduced": outcome, "kind": "paper"}
      for at, outcome in enumerate(outcomes)
    }
  } | more


def test_the_page_contains_every_study(tmp_path):
  results = make_results()
  path = page.write(results, tmp_path / "new")
  assert path == tmp_path / "new" / "index.html"
  parsed = _Page(path.read_text())
  assert not parsed.open
  text = " ".join(parsed.text.split())
  ids = {attributes.get("id") for _, attributes in parsed.tags}
  for name, study in results["studies"].items():
    assert f"study-{name}" in ids
    for key in ("title", "question", "measured", "setup", "command"):
      assert study[key] in text
    for at, figure in enumerate(study["figures"], 1):
      svg = (tmp_path / "new/figures" / f"{name}-{at}.svg").read_text()
      root = ElementTree.fromstring(svg)
      assert root[0].get("fill") == "#ffffff"
      nested = root.findall("{http://www.w3.org/2000/svg}svg")
      assert len(nested) == len(figure["panels"])
      assert figure["title"] in text
      for panel in figure["panels"]:
        assert panel["title"] in text and panel["x"]["label"] in text
  assert "7 runs are missing" in text
  record = json.loads((tmp_path / "new/results.json").read_text())
  assert record["verdicts"]["ptx_coef"]["reproduced"] is True


def test_files_of_removed_figures_are_deleted(tmp_path):
  results = make_results()
  name = next(n for n, s in results["studies"].items() if len(s["figures"]) > 1)
  page.write(results, tmp_path)
  last = len(results["studies"][name]["figures"])
  others = tmp_path / "figures" / f"{name}-mine.svg"
  others.write_text("kept")
  del results["studies"][name]["figures"][1:]
  page.write(results, tmp_path)
  assert (tmp_path / "figures" / f"{name}-1.svg").exists()
  assert not (tmp_path / "figures" / f"{name}-{last}.svg").exists()
  assert others.read_text() == "kept"


def test_page_is_self_contained_and_has_no_script():
  parsed = _Page(page.render(make_results(SMALL)))
  names = {tag for tag, _ in parsed.tags}
  assert not names & {"script", "link", "img", "iframe", "object", "image"}
  ids = {attributes.get("id") for _, attributes in parsed.tags}
  used = set()
  for _, attributes in parsed.tags:
    for name, value in attributes.items():
      assert not name.startswith("on")
      if name in ("href", "src", "xlink:href"):
        assert value.startswith("#")
        used.add(value[1:])
      for target in re.findall(r"url\(([^)]*)\)", value or ""):
        assert target.startswith("#")
        used.add(target[1:])
  assert used and used <= ids
  policies = [a for t, a in parsed.tags if t == "meta" and "content" in a]
  assert any("default-src 'none'" in a["content"] for a in policies)


def test_text_is_escaped_everywhere(tmp_path):
  def spoil(value):
    if isinstance(value, str):
      scales = (*findings.X_SCALES, *findings.ROLES, "paper", "ours")
      return value if value in scales else f"{EVIL}\x00\x1b\ud800"
    if isinstance(value, list):
      return [spoil(item) for item in value]
    if isinstance(value, dict):
      return {key: spoil(item) for key, item in value.items()}
    return value

  results = spoil(make_results(SMALL))
  results["studies"][f"../../{EVIL}"] = results["studies"].pop("failures")
  results["verdicts"].pop("failures")
  path = page.write(results, tmp_path / "a" / "b")
  parsed = _Page(path.read_text())
  assert not parsed.open
  assert not {"script", "img"} & {tag for tag, _ in parsed.tags}
  assert parsed.text.count("<script>alert(1)</script>") > 40
  assert [p.name for p in tmp_path.iterdir()] == ["a"]
  assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]
  written = list((tmp_path / "a/b/figures").iterdir())
  assert len(written) == 4
  for file in written:
    ElementTree.fromstring(file.read_text())
  assert not re.search(r"[\x00-\x09\x1b]", page.terminal_summary(results))


@pytest.mark.parametrize(
  "results, sentence",
  [
    ({}, "No study of the paper's findings is complete yet."),
    (_verdicts(None), "No study of the paper's findings is complete yet."),
    (
      _verdicts(True, True),
      "All 2 findings of the paper reproduce in miniature.",
    ),
    (
      _verdicts(True, False, True, where="in a world of 300 words."),
      "2 of 3 findings of the paper reproduce in a world of 300 words.",
    ),
    (
      _verdicts(True, False, None),
      "1 of the 2 findings of the paper tried so far reproduces in miniature; "
      "1 is not yet complete.",
    ),
    (
      _verdicts(False, False),
      "None of 2 findings of the paper reproduce in miniature.",
    ),
    (
      _verdicts("odd", True),
      "1 of the 1 findings of the paper tried so far reproduces in miniature; "
      "1 is not yet complete.",
    ),
  ],
)
def test_headline_counts_the_verdicts(results, sentence):
  assert page.headline(results) == sentence


def test_our_own_findings_do_not_count_as_the_papers():
  results = make_results(("ours", "kl_coef", "failures", "kl_coef_ptx"))
  marks = {v.study: v.mark for v in page.verdicts(results)}
  assert marks == {
    "ours": page.OURS,
    "kl_coef": page.YES,
    "failures": page.OPEN,
    "kl_coef_ptx": page.NO,
  }
  assert page.headline(results).startswith("1 of the 2 findings")
  results["studies"]["ours"]["complete"] = False
  assert page.verdicts(results)[-1].mark is page.OPEN


def test_terminal_summary_is_narrow_and_complete():
  results = make_results()
  for width in (60, 100):
    lines = page.terminal_summary(results, width=width).splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for study in results["studies"].values():
      assert study["title"] in text and study["measured"] in text
    assert text.count("Not reproduced") == 1
    assert text.count("Incomplete") == text.count("Our own") == 1


@pytest.mark.parametrize(
  "cells, expected",
  [
    (
      [Interval(0.5512, 0.52, 0.58), None],
      [("0.551", "0.520 to 0.580"), ("–", "")],
    ),
    ([Interval(-71.23, -73.4, -69.1)], [("−71.2", "−73.4 to −69.1")]),
    ([Interval(1.0, 1.0, 1.0)], [("1.000", "1.000 to 1.000")]),
    (
      [Interval(0.5512, 0.52, 0.58), Interval(1.0, math.nan, math.nan)],
      [("0.551", "0.520 to 0.580"), ("1.000", "–")],
    ),
    ([0.25, 3, "diverged", 512000], None),
    ([1.5e-5], [("1.5·10⁻⁵", "")]),
  ],
)
def test_cells_have_the_decimals_of_their_intervals(cells, expected):
  table = Table("c", ["m", "v"], [("x", cell) for cell in cells])
  actual = [row[1][0] for row in page._table(table).rows]
  if expected is None:
    expected = [("0.25", ""), ("3", ""), ("diverged", ""), ("512000", "")]
  assert actual == expected


def test_rows_of_unequal_length_make_a_table():
  table = page._table(
    Table("c", ["m"], [("x", 1, 2), ("y",), ("z", None, "a")])
  )
  assert {len(row[1]) for row in table.rows} == {2}
  assert len(table.columns) == 2


def test_any_single_malformed_value_is_tolerated():
  """Each node of two small studies in turn replaced by each odd value."""

  def paths(tree, prefix=()):
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree[:1])
    for key, item in pairs:
      yield (*prefix, key)
      if isinstance(item, (dict, list)):
        yield from paths(item, (*prefix, key))

  results = make_results(("kl_coef_ptx", "policy_init"))
  places = list(paths(results))
  assert len(places) > 100
  odds = itertools.cycle((None, math.nan, "odd", [], {}, [[1]], {"mean": "x"}))
  for at, place in enumerate(places):
    for odd in itertools.islice(odds, 6):
      changed = copy.deepcopy(results)
      node = changed
      for key in place[:-1]:
        node = node[key]
      node[place[-1]] = odd
      page.terminal_summary(changed)
      if at % 12 == 0:  # drawing is slower
        page.render(changed)
        break


def test_numbers_that_are_not_finite_become_null(tmp_path):
  results = make_results(("kl_coef",))
  results["studies"]["kl_coef"]["figures"][0]["panels"][0]["series"][0][
    "points"
  ][0][1] = math.nan
  results["seconds"] = math.inf
  page.write(results, tmp_path)
  json.loads(
    (tmp_path / "results.json").read_text(),
    parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
  )


def test_same_results_give_the_same_page():
  results = make_results(("ptx_coef",))
  assert page.render(results) == page.render(results)


MEASURE = """
onload = () => {
  const frame = document.getElementById("f");
  const root = frame.contentDocument, view = frame.contentWindow;
  const found = {scroll: root.documentElement.scrollWidth,
    client: root.documentElement.clientWidth, broken: 0, overlaps: [],
    outside: [], smallest: 99};
  for (const image of root.images) found.broken += !image.naturalWidth;
  for (const item of root.querySelectorAll("body *")) {
    if (item.closest("svg") || !Array.from(item.childNodes).some(
        n => n.nodeType == 3 && n.data.trim())) continue;
    found.smallest = Math.min(found.smallest,
      parseFloat(view.getComputedStyle(item).fontSize));
  }
  for (const svg of root.querySelectorAll("svg.figure")) {
    const box = svg.getBoundingClientRect();
    const scale = box.width / svg.viewBox.baseVal.width;
    const texts = Array.from(svg.querySelectorAll("text"))
      .map(t => [t.textContent, t.getBoundingClientRect(), t]);
    for (const [text, a, item] of texts) {
      found.smallest = Math.min(found.smallest,
        scale * parseFloat(view.getComputedStyle(item).fontSize));
      if (a.left < box.left - 1 || a.right > box.right + 1 ||
          a.top < box.top - 2 || a.bottom > box.bottom + 2)
        found.outside.push(text);
      for (const [other, b, twin] of texts)
        if (item !== twin && a.left < b.right - 1 && b.left < a.right - 1 &&
            a.top < b.bottom - 3 && b.top < a.bottom - 3)
          found.overlaps.push(text + " | " + other);
    }
  }
  const rows = Array.from(root.querySelectorAll(".glance li"));
  found.rows = rows.length;
  found.shown = rows.filter(
    row => row.getBoundingClientRect().bottom <= 800).length;
  document.title = "found " + encodeURIComponent(JSON.stringify(found));
}
"""


def look(page_path, scratch, width, *, rows):
  """Checks a page in a browser's window of this width.

  Args:
    page_path: the page.
    scratch: directory for what the browser writes.
    width: width of the window in pixels.
    rows: number of the page's findings.
  """
  holder = scratch / "holder.html"
  holder.write_text(
    f'<iframe id="f" src="{page_path.as_uri()}" style="width:{width}px;'
    f'height:800px;border:0"></iframe><script>{MEASURE}</script>'
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
      "--enable-logging=stderr",
      f"--user-data-dir={scratch / 'profile'}",
      "--window-size=1600,1000",
      "--virtual-time-budget=2000",
      "--dump-dom",
      f"file://{holder}",
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )
  title = re.search(r"<title>found ([^<]+)</title>", done.stdout)
  assert title, done.stderr[-2000:]
  measurements = json.loads(urllib.parse.unquote(title[1]))
  assert ":CONSOLE" not in done.stderr, done.stderr[-2000:]
  assert (
    measurements["client"] <= width
    and measurements["scroll"] <= measurements["client"]
  )
  assert measurements["broken"] == 0 and measurements["smallest"] >= 11
  assert measurements["overlaps"] == [] and measurements["outside"] == []
  assert measurements["rows"] == rows
  assert measurements["shown"] >= (
    11 if width == 1280 else 6
  )  # without scrolling


@pytest.mark.skipif(_chromium() is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [400, 1280])
def test_page_in_a_browser(width, tmp_path):
  results = make_results()
  wide = Table("w" * 90, ["m"] * 12, [("name" * 9, *[0.1234] * 11)] * 2)
  results["studies"]["sft_epochs"]["tables"] = [wide.as_dict()]
  results["studies"]["sft_epochs"]["notes"] = ["x" * 300]
  path = page.write(results, tmp_path)
  look(path, tmp_path, width, rows=11)


@pytest.mark.skipif(_chromium() is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [400, 1280])
def test_the_committed_results_in_a_browser(width, tmp_path):
  results = json.loads((RESULTS / "results.json").read_text())
  look(RESULTS / "index.html", tmp_path, width, rows=len(results["verdicts"]))


def test_the_committed_page_is_made_of_the_committed_results(tmp_path):
  results = json.loads((RESULTS / "results.json").read_text())
  page.write(results, tmp_path)
  for path in (RESULTS / "figures").iterdir():
    assert (tmp_path / "figures" / path.name).read_text() == path.read_text()
  assert (tmp_path / "index.html").read_text() == (
    (RESULTS / "index.html").read_text()
  )
  for verdict in results["verdicts"].values():
    assert {"reproduced", "criterion", "measured", "paper", "seeds"} <= set(
      verdict
    )
