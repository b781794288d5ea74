"""The page of instructions, and their new versions."""

from __future__ import annotations

import functools

from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response  # pyright: ignore[reportMissingImports]

from instructgpt_jax.labeling import project
from instructgpt_jax.labeling.web import queries
from instructgpt_jax.labeling.web.visit import Visit, redirect

_MAX_MARKDOWN = 100_000  # characters


@functools.cache
def _markdown() -> MarkdownIt:
  """Returns the renderer: raw HTML stays text, and images are off."""
  markdown = MarkdownIt("commonmark", {"html": False})
  markdown.enable("table").disable(["image", "html_block", "html_inline"])
  # The first text compiles the rules; threads share them only afterwards.
  markdown.render("text")
  return markdown


def render_markdown(text: str) -> Markup:
  """Returns Markdown as HTML, whose headings begin at h2."""
  markdown = _markdown()
  tokens = markdown.parse(text)
  for token in tokens:
    if token.type in ("heading_open", "heading_close"):
      token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
  return Markup(markdown.renderer.render(tokens, markdown.options, {}))


def show(visit: Visit) -> Response:
  """Shows the newest instructions."""
  return _page(visit, "", None)


def publish(visit: Visit) -> Response:
  """Stores a new version."""
  text = visit.field("markdown").replace("\r\n", "\n").strip()
  if not text or len(text) > _MAX_MARKDOWN:
    problem = f"Write 1 to {_MAX_MARKDOWN:,} characters."
    return _page(visit, problem, text, 422)
  project.write_instructions(visit.store, text + "\n", visit.now)
  return redirect("/instructions")


def preview(visit: Visit) -> Response:
  """Returns the text of the form as HTML."""
  return HTMLResponse(render_markdown(visit.field("markdown")[:_MAX_MARKDOWN]))


def _page(
  visit: Visit, problem: str, text: str | None, status: int = 200
) -> Response:
  with visit.store.read() as connection:
    newest = queries.newest_instructions(connection)
  current = newest.markdown if newest else ""
  return visit.render(
    "instructions.html",
    status,
    version=newest.version if newest else None,
    created_at=newest.created_at if newest else None,
    html=render_markdown(current) if current.strip() else "",
    markdown=current if text is None else text,
    problem=problem,
    editing=bool(problem),
  )
