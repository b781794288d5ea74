"""The notebooks run, show figures, and their checks can fail."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDER = ROOT / "notebooks"
STAGES, ABLATIONS, OWN_DATA, HUGGING_FACE = NAMES = (
  "01_three_stages",
  "02_ablations",
  "03_your_own_data",
  "04_hugging_face",
)
FIX = "run: python -m tests.update_notebooks"
# A cell's text and what makes it wrong, in the notebook of the three stages.
MISTAKES = (
  # SFT: the logits of a token predict the next one.
  ("logp[row, t - 1, tokens[row, t]]", "logp[row, t, tokens[row, t]]"),
  # The mean is over the tokens that carry loss.
  ("return total / weights.sum()", "return total / weights.size"),
  # Ranking loss: ties are no pairs, and prompts weigh the same.
  ("if ranks[i] < ranks[j]]", "if ranks[i] <= ranks[j] and i != j]"),
  ("losses.append(np.mean(", "losses.extend((lambda x: x)("),
  # The score comes once, on the last response token.
  ("rewards[episodes, last] += score", "rewards[episodes, -1] += score"),
  ("rewards = -ppo.kl_coef * kl", "rewards = ppo.kl_coef * kl"),
  # A value has not seen the token that it judges.
  ("[:, -N - 1 : -1] * mask\n\nkl", "[:, -N:] * mask\n\nkl"),
  ("ppo.gae_lambda * next_advantage", "next_advantage"),
  ("advantages = (raw - mean) / deviation", "advantages = raw / deviation"),
  # The clipped objective: its width, and that it is the smaller one.
  ("= np.clip(ratio, 1 - ppo.clip_ratio,", "= np.clip(ratio, 1 - 0.1,"),
  ("policy_loss = -np.minimum(plain, clipped)", "policy_loss = -plain"),
  ("errors = np.maximum(", "errors = np.minimum("),
  ("text.tokens, text.weights\n", "text.tokens, text.weights > 9\n"),
  # Eq. 2 adds the pretraining term.
  ("return -(objective + ppo.ptx_coef", "return -(objective - ppo.ptx_coef"),
)


def _path(name):
  return FOLDER / f"{name}.ipynb"


@pytest.fixture(params=NAMES)
def written(request):
  """Returns a committed notebook."""
  return json.loads(_path(request.param).read_text(encoding="utf-8"))


def _source(cell):
  return "".join(cell["source"])


def test_the_directory_contains_these_notebooks():
  assert {p.stem for p in FOLDER.glob("*.ipynb")} == set(NAMES)


def test_no_counts_and_no_other_metadata_are_stored(written):
  assert written["metadata"] == {
    "kernelspec": {
      "display_name": "Python 3",
      "language": "python",
      "name": "python3",
    },
    "language_info": {"name": "python"},
  }
  for cell in written["cells"]:
    assert cell["metadata"] == {}
    if cell["cell_type"] == "code":
      assert cell["execution_count"] is None
      assert _source(cell).strip()


def test_figures_are_stored_and_neither_errors_nor_paths(written):
  outputs = [o for c in written["cells"] for o in c.get("outputs", ())]
  assert any("image/png" in o.get("data", ()) for o in outputs), FIX
  for output in outputs:
    assert output["output_type"] in (
      "stream",
      "display_data",
      "execute_result",
    ), FIX
    if output.get("name") == "stderr":  # an error that is shown, no progress
      assert "".join(output["text"]).startswith("error: "), FIX
    assert not re.search(r"/tmp\w{8}", "".join(output.get("text", ""))), FIX


def test_sources_have_no_absolute_path(written):
  for cell in written["cells"]:
    assert not re.search(
      r"(^|[\s\"'`=(])(/[A-Za-z]|~/|[A-Z]:\\)", _source(cell)
    )


def test_the_first_cell_gives_purpose_duration_and_changes(written):
  cell = written["cells"][0]
  assert cell["cell_type"] == "markdown" and _source(cell).startswith("# ")
  assert re.search(r"\*\*Time:\*\* about \d+ s on two", _source(cell))
  assert re.search(r"\*\*For more:\*\* [^.]*`SMALL`", _source(cell))


def test_links_lead_somewhere(written):
  text = "\n".join(_source(c) for c in written["cells"])
  for link in re.findall(r"\]\(([^)]+)\)", text):
    if not link.startswith("https://arxiv.org/abs/"):
      assert (FOLDER / link).exists(), link
  named = r"`((?:instructgpt_jax|experiments|docs)/[\w/.]*)`"
  for path in re.findall(named, text):
    assert (ROOT / path).exists(), path


@pytest.fixture
def kernel(tmp_path, monkeypatch):
  """Installs this interpreter as kernel `python3`, without user settings."""
  for package in ("ipykernel", "nbclient", "nbformat", "pandas"):
    pytest.importorskip(package, reason=f"{package} is not installed")
  from ipykernel import kernelspec

  home = tmp_path / "jupyter"
  kernelspec.write_kernel_spec(home / "kernels" / "python3")
  monkeypatch.setenv("JUPYTER_PATH", str(home))
  for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
    monkeypatch.setenv(f"JUPYTER_{name}", str(home / name.lower()))
  monkeypatch.setenv("IPYTHONDIR", str(home / "ipython"))
  # A notebook finds the repository by itself, and draws into itself.
  for name in ("PYTHONPATH", "MPLBACKEND"):
    monkeypatch.delenv(name, raising=False)


def _run(name, folder, mistakes=()):
  """Executes a notebook; each mistake must fail where it is made."""
  import nbclient
  import nbformat

  notebook = nbformat.read(_path(name), as_version=4)
  nbformat.validate(notebook)
  client = nbclient.NotebookClient(
    notebook,
    timeout=600,
    kernel_name="python3",
    resources={"metadata": {"path": str(folder)}},
  )
  before = sorted(FOLDER.rglob("*"))
  made = []
  with client.setup_kernel():
    for index, cell in enumerate(notebook.cells):
      for right, wrong in mistakes:
        if cell.cell_type == "code" and right in cell.source:
          bad = nbformat.from_dict(dict(cell))
          bad.source = cell.source.replace(right, wrong)
          with pytest.raises(
            nbclient.exceptions.CellExecutionError, match="AssertionError"
          ):
            client.execute_cell(bad, index)
          made.append(right)
      client.execute_cell(cell, index)
  assert sorted(FOLDER.rglob("*")) == before
  assert sorted(made) == sorted(right for right, _ in mistakes)
  return notebook


def _printed(notebook):
  """Returns the printed text of code cells."""
  texts = []
  for cell in notebook.cells:
    outputs = cell.get("outputs", ())
    text = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "Traceback" not in text and "Warning" not in text, text
    if text:
      texts.append(text)
  return texts


def _pictures(notebook):
  return sum(
    "image/png" in output.get("data", ())
    for cell in notebook.cells
    for output in cell.get("outputs", ())
  )


def test_three_stages_and_every_check_can_fail(kernel):
  notebook = _run(STAGES, FOLDER, MISTAKES)
  printed = "\n".join(_printed(notebook))
  assert len(re.findall("by hand .* by the library", printed)) == 8
  assert len(re.findall(r"\d+ numbers are equal", printed)) == 7
  assert _pictures(notebook) == 1


def test_ablations(kernel):
  notebook = _run(ABLATIONS, ROOT)
  first, second = [t for t in _printed(notebook) if "done in" in t]
  assert "shared: done in" in first and first.count("done in") == 4
  # The second call has run what was missing, and nothing else.
  assert second.count("done in") == 3 == second.count("seed=1: done in")
  assert _pictures(notebook) == 1


def test_your_own_data(kernel):
  notebook = _run(OWN_DATA, FOLDER)
  (error,) = re.findall(
    "^error: .*", "\n".join(_printed(notebook)), re.MULTILINE
  )
  assert "broken.jsonl:7" in error and "completion" in error
  assert _pictures(notebook) == 1
  table = notebook.cells[-2].outputs[-1]["data"]["text/plain"]
  assert table.count("The ") >= 4


def test_hugging_face(kernel):
  notebook = _run(HUGGING_FACE, FOLDER)
  assert _pictures(notebook) == 1
  exported = notebook.cells[-1].outputs[-1]["data"]["text/plain"]
  assert exported.count("The ") == 4
