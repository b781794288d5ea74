"""Static files: contrast of colors, and what is vendored."""

import hashlib
import itertools
import re

import pytest

from instructgpt_jax.labeling.web.visit import DIRECTORY, STATIC

# Text colors and the backgrounds on which the pages put them.
BACKGROUNDS = ("page", "surface", "sunken")
PAIRS = (
  *itertools.product(("text", "muted", "accent"), BACKGROUNDS),
  *itertools.product(("good", "bad"), ("page", "surface")),
  ("on-accent", "accent"),
  ("on-accent-soft", "accent-soft"),
  ("good", "good-soft"),
  ("bad", "bad-soft"),
  ("warn", "warn-soft"),
)
# What must be seen, but is not text, needs 3:1 (WCAG 1.4.11).
SHAPES = tuple(itertools.product(("control", "focus"), ("page", "surface")))


def palettes():
  """Returns the colors of the light and of the dark page."""
  css = (STATIC / "app.css").read_text()
  light, dark = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)
  )
  return {"light": light, "dark": dark}


def luminance(color):
  """Computes WCAG's relative luminance of #rrggbb."""
  channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [
    c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
    for c in channels
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
  """Computes WCAG's contrast ratio."""
  dark, light = sorted((luminance(first), luminance(second)))
  return (light + 0.05) / (dark + 0.05)


def test_contrast_of_known_colors():
  assert contrast("#000000", "#ffffff") == pytest.approx(21)
  assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_is_readable(name):
  colors = palettes()[name]
  for text, background in PAIRS:
    ratio = contrast(colors[text], colors[background])
    assert ratio >= 4.5, (text, background, ratio)
  for shape, background in SHAPES:
    ratio = contrast(colors[shape], colors[background])
    assert ratio >= 3, (shape, background, ratio)


def test_colors_are_only_in_the_palettes():
  css = (STATIC / "app.css").read_text()
  rest = re.sub(r":root \{.*?\}", "", css, flags=re.DOTALL)
  assert re.findall(r"#[0-9a-fA-F]{3,8}\b", rest) == []
  names = set(re.findall(r"var\(--([\w-]+)\)", css))
  assert names <= palettes()["light"].keys() | {"radius", "gap"}
  assert palettes()["light"].keys() == palettes()["dark"].keys()


def test_vendored_files_are_unchanged():
  readme = (STATIC / "vendor" / "README.md").read_text()
  rows = dict(re.findall(r"\| `([\w.]+\.js)` .* `([0-9a-f]{64})` \|", readme))
  files = {path.name for path in (STATIC / "vendor").glob("*.js")}
  assert rows.keys() == files and len(files) == 2
  for name, digest in rows.items():
    content = (STATIC / "vendor" / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
    license_name = name.split(".")[0].lower() + ".LICENSE"
    assert (STATIC / "vendor" / license_name).exists()


def test_pages_load_nothing_from_other_servers():
  sources = [p for p in STATIC.rglob("*") if p.suffix in (".css", ".js")]
  sources = [p for p in sources if p.parent.name != "vendor"]
  sources += (DIRECTORY / "templates").glob("*.html")
  assert len(sources) > 20
  for path in sources:
    assert not re.search("https?://|[\"'(]//", path.read_text()), path.name


def test_every_class_of_the_templates_has_a_style():
  css = (STATIC / "app.css").read_text()
  styled = set(re.findall(r"\.([a-z][\w-]*)", css))
  used = set()
  for path in (DIRECTORY / "templates").glob("*.html"):
    text = re.sub(r"\{[{%].*?[%}]\}", " ", path.read_text())
    for value in re.findall(r'class="([^"]*)"', text):
      used |= set(value.split())
  assert used - styled == set()
