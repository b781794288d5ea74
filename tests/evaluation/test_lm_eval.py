"""lm-evaluation-harness: requests agree with its own `hf` backend."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import lm_eval as adapter
from instructgpt_jax.evaluation import lm_eval_settings
from instructgpt_jax.hub.__main__ import export_model
from tests import devices
from tests.evaluation import directories
from tests.evaluation.directories import TEXTS
from tests.interop import tiny

tiny.library("torch")
tiny.library("lm_eval")
evaluator = tiny.library("lm_eval.evaluator")
huggingface = tiny.library("lm_eval.models.huggingface")
instance = tiny.library("lm_eval.api.instance")
model_api = tiny.library("lm_eval.api.model")

PAIRS = [
  (TEXTS[0], " The bird"),
  ("The fox saw ", " a bird"),  # a trailing blank
  ("The fox saw  \n", "a bird"),
  ("", " two owls"),
  ("", "The fox"),
  ("", "<|endoftext|> begins"),
  ("a long text " * 60, " red barn"),  # longer than the context
  ("caf", "é 😀"),
  ("sang 👩", "\u200d👧 ok"),  # inside of a character
  ("e", "\u0301 bird"),
  ("Question: who", " sang? Answer: the bird."),
  ("Question: who", " saw"),
  ("Question: who", " a"),
  ("The fox s", "aw a bird"),
]
DOCUMENTS = [TEXTS[0], TEXTS[2] * 6, "a", TEXTS[1] * 9, "<s>The fox"]
PROMPTS = [
  (TEXTS[0][:30], {"until": ["e", "\n\n"], "max_gen_toks": 12}),
  (TEXTS[1][:30], {"until": ["e", "\n\n"], "max_gen_toks": 12}),
  (TEXTS[2][:30], {"until": "e", "max_gen_toks": 12}),
  ("The fox saw " * 30, {"until": [], "max_gen_toks": 16}),
  ("a", {"max_gen_toks": 16, "do_sample": False, "temperature": 0.0}),
  ("The", {"until": ["zz"], "max_new_tokens": 16, "do_sample": False}),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """Returns family → (a directory, what our export makes of it)."""
  root = tmp_path_factory.mktemp("harness")

  @functools.cache
  def make(family):
    path = str(getattr(directories, family)(root / family))
    export_model(path, f"{path}-exported")
    return path, f"{path}-exported"

  return make


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, bases):
  """Returns a directory, and `hf` on its export."""
  path, exported = bases(request.param)
  theirs = huggingface.HFLM(
    pretrained=exported, device="cpu", dtype="float32", batch_size=1
  )
  return path, theirs


@pytest.fixture(scope="module")
def gpt2(bases):
  return bases("gpt2")[0]


def asked(kind, arguments):
  return [
    instance.Instance(request_type=kind, doc={}, arguments=a, idx=i)
    for i, a in enumerate(arguments)
  ]


@pytest.mark.parametrize("template", [False, True])
def test_requests_agree_with_hf(pair, template):
  path, theirs = pair
  models = [adapter.Model(path, batch_size=n) for n in (4, 5)]
  history = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": TEXTS[0]},
  ]
  chat = theirs.apply_chat_template(history)
  for model in models:
    assert model.apply_chat_template(history) == chat
    history.append({"role": "assistant", "content": " Well "})
    for prefill in (True, False):
      assert model.apply_chat_template(
        history, add_generation_prompt=prefill
      ) == theirs.apply_chat_template(history, add_generation_prompt=prefill)
    history.pop()
  ahead = chat if template else ""
  pairs = [(ahead + c if c else c, t) for c, t in PAIRS]
  expected = theirs.loglikelihood(asked("loglikelihood", pairs))
  for model in models:
    results = model.loglikelihood(asked("loglikelihood", pairs))
    for result, (total, greedy), text in zip(
      results, expected, pairs, strict=True
    ):
      assert result == (pytest.approx(total, abs=1e-3), greedy), text
  documents = [(ahead + text,) for text in DOCUMENTS]
  totals = theirs.loglikelihood_rolling(asked("rolling", documents))
  for model in models:
    results = model.loglikelihood_rolling(asked("rolling", documents))
    assert results == pytest.approx(totals, abs=1e-3)
  prompts = [(ahead + text, dict(settings)) for text, settings in PROMPTS]
  texts = [
    theirs.generate_until(asked("generate_until", [prompt]))[0]
    for prompt in prompts
  ]
  prompts = [(ahead + text, settings) for text, settings in PROMPTS]
  for model in models:
    answers = model.generate_until(asked("generate_until", prompts))
    assert answers == texts


def test_the_adapter_says_what_hf_says(pair):
  path, theirs = pair
  ours = adapter.Model(path)
  assert isinstance(ours, model_api.LM)
  for name in ("max_length", "eot_token_id", "prefix_token_id", "max_gen_toks"):
    assert getattr(ours, name) == getattr(theirs, name), name
  assert (ours.rank, ours.world_size) == (0, 1)
  for text in (*TEXTS, "<s>a", "a</s>", "<|end|>"):
    assert ours.tok_encode(text) == theirs.tok_encode(text)
    ids = theirs.tok_encode(text, add_special_tokens=False)
    assert ours.tok_encode(text, add_special_tokens=False) == ids
    assert ours.tok_decode(ids) == theirs.tok_decode(ids)
  assert ours.chat_template(True) == theirs.chat_template(True)
  assert ours.chat_template(False) is None
  assert ours.tokenizer_name != adapter.NAME


def write_tasks(path):
  """Writes four tasks, one of each kind of request, with their data."""
  words = ["bird", "fox", "owls", "barn"]
  rows = [
    {"text": text, "choices": words, "gold": i, "word": words[i]}
    for i, text in enumerate([*TEXTS, "The red"])
  ]
  data = path / "rows.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  common = {
    "dataset_path": "json",
    "dataset_kwargs": {
      "data_files": {"test": str(data)},
      "cache_dir": str(path / "cache"),
    },
    "test_split": "test",
    "metadata": {"version": 1.0},
  }
  mean = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
  tasks = {
    "tiny_choice": {
      "output_type": "multiple_choice",
      "doc_to_text": "{{text}}",
      "doc_to_choice": "choices",
      "doc_to_target": "gold",
      "metric_list": [*mean, {**mean[0], "metric": "acc_norm"}],
    },
    "tiny_last_word": {
      "output_type": "loglikelihood",
      "doc_to_text": "{{text}}",
      "doc_to_target": " {{word}}",
      "metric_list": mean,
    },
    "tiny_documents": {
      "output_type": "loglikelihood_rolling",
      "doc_to_text": "",
      "doc_to_target": "{{text}}",
      "metric_list": [{"metric": "word_perplexity"}],
    },
    "tiny_answers": {
      "output_type": "generate_until",
      "doc_to_text": "{{text}}",
      "doc_to_target": "{{word}}",
      "generation_kwargs": {"until": ["."], "max_gen_toks": 8},
      "metric_list": [{"metric": "exact_match"}],
    },
  }
  for name, task in tasks.items():  # JSON is YAML
    content = {"task": name, **common, **task}
    (path / f"{name}.yaml").write_text(json.dumps(content))
  return list(tasks)


def figures(results):
  """Returns the metrics of each task, without their errors."""
  return {
    task: {
      name: value
      for name, value in metrics.items()
      if isinstance(value, float) and "stderr" not in name
    }
    for task, metrics in results["results"].items()
  }


@pytest.mark.parametrize("template", [False, True])
def test_tasks_agree_with_hf(pair, template, tmp_path):
  path, theirs = pair
  names = write_tasks(tmp_path)
  manager = tiny.library("lm_eval.tasks").TaskManager(
    include_path=str(tmp_path), include_defaults=False
  )
  results = [
    evaluator.simple_evaluate(
      model=model,
      tasks=names,
      task_manager=manager,
      bootstrap_iters=0,
      apply_chat_template=template,
      num_fewshot=1,
    )
    for model in (adapter.Model(path), theirs)
  ]
  ours, expected = map(figures, results)
  assert sorted(ours) == sorted(names)
  for name in names:
    assert ours[name] == pytest.approx(expected[name], rel=1e-3), name
    samples = [r["samples"][name] for r in results]
    assert len(samples[0]) == 4
    for one, other in zip(*samples, strict=True):
      assert one["arguments"] == other["arguments"]


def run_command(arguments, **environment):
  return subprocess.run(
    [sys.executable, "-m", "instructgpt_jax.evaluation.lm_eval", *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
  )


def test_the_command_runs_a_local_task(gpt2, tmp_path):
  write_tasks(tmp_path)
  arguments = [
    *("run", "--model", "instructgpt_jax", f"--model_args=checkpoint={gpt2}"),
    *("--tasks", "tiny_choice", "--include_path", str(tmp_path)),
    *("--batch_size", "2", "--output_path", str(tmp_path / "out.json")),
  ]
  done = run_command(arguments)
  assert done.returncode == 0, done.stderr
  assert "tiny_choice" in done.stdout
  (written,) = tmp_path.rglob("out_*.json")
  results = json.loads(written.read_text())
  assert 0 <= results["results"]["tiny_choice"]["acc,none"] <= 1
  assert results["config"]["model"] == "instructgpt_jax"
  done = run_command([*arguments[:-2], "--device", "cuda"])
  assert done.returncode == 2
  assert done.stderr.splitlines()[-2].startswith("error: [model_args device]")


def test_two_processes_of_two_devices_share_the_requests(gpt2, tmp_path):
  names = write_tasks(tmp_path)
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  arguments = [
    *("run", "--model", "instructgpt_jax", f"--model_args=checkpoint={gpt2}"),
    *("--tasks", *names, "--include_path", str(tmp_path)),
    *("--output_path", str(tmp_path / "out.json"), "--batch_size", "auto"),
  ]
  children = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "instructgpt_jax.evaluation.lm_eval"),
        *("--processes.count=2", f"--processes.index={index}"),
        f"--processes.coordinator=localhost:{port}",
        *arguments,
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env={**os.environ, "HF_HUB_OFFLINE": "1"}
      | devices.pretended(2, os.environ["XLA_FLAGS"]),
    )
    for index in range(2)
  ]
  outputs = [child.communicate(timeout=600)[0] for child in children]
  assert [child.returncode for child in children] == [0, 0], outputs
  assert ["tiny_choice|" in text.replace(" ", "") for text in outputs] == [
    True,
    False,
  ]
  (written,) = tmp_path.rglob("out_*.json")
  manager = tiny.library("lm_eval.tasks").TaskManager(
    include_path=str(tmp_path), include_defaults=False
  )
  alone = evaluator.simple_evaluate(
    model=adapter.Model(gpt2),
    tasks=names,
    task_manager=manager,
    bootstrap_iters=0,
  )
  together = figures(json.loads(written.read_text()))
  for name, expected in figures(alone).items():
    assert together[name] == pytest.approx(expected, rel=1e-4), name


def test_the_cache_of_responses_is_used(gpt2, tmp_path, monkeypatch):
  names = write_tasks(tmp_path)
  manager = tiny.library("lm_eval.tasks").TaskManager(
    include_path=str(tmp_path), include_defaults=False
  )
  model = adapter.Model(gpt2)
  evaluate = functools.partial(
    evaluator.simple_evaluate,
    model=model,
    tasks=names,
    task_manager=manager,
    bootstrap_iters=0,
    use_cache=str(tmp_path / "responses"),
  )
  first = figures(evaluate())
  for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
    monkeypatch.setattr(model, kind, None)
  assert figures(evaluate()) == first


@pytest.mark.parametrize(
  "arguments, code",
  [
    ({"checkpoint": ""}, "no_checkpoint"),
    ({"pretrained": "x"}, "unknown_model_arg"),
    ({"device": "cuda"}, "unknown_model_arg"),
    ({"trust_remote_code": True}, "unknown_model_arg"),
    ({"batch_size": "many"}, "bad_batch_size"),
    ({"batch_size": 0}, "bad_batch_size"),
    ({"max_length": 65}, "out_of_range"),
    ({"max_length": "all"}, "out_of_range"),
    ({"max_gen_toks": "many"}, "out_of_range"),
    ({"seed": -1}, "out_of_range"),
    ({"dtype": "int7"}, "not_allowed"),
  ],
)
def test_bad_arguments_are_refused(gpt2, arguments, code):
  with pytest.raises(UserError) as error:
    adapter.Model.create_from_arg_obj({"checkpoint": gpt2, **arguments})
  assert error.value.code == code


def test_arguments_of_the_command_line(gpt2):
  model = adapter.Model.create_from_arg_string(
    f"checkpoint={gpt2},max_length=32,max_gen_toks=8",
    {"batch_size": "auto", "max_batch_size": None, "device": None},
  )
  assert (model.max_length, model.max_gen_toks) == (32, 8)


@pytest.mark.parametrize(
  "settings, code",
  [
    ({"num_beams": 4}, "unknown_gen_kwarg"),
    ({"until": ["a"], "repetition_penalty": 1.1}, "unknown_gen_kwarg"),
    ({"do_sample": True, "temperature": 0.0}, "contradictory_gen_kwargs"),
    ({"max_gen_toks": 4, "max_tokens": 5}, "contradictory_gen_kwargs"),
    ({"max_gen_toks": "many"}, "bad_gen_kwarg"),
    ({"max_gen_toks": 2.5}, "bad_gen_kwarg"),
    ({"temperature": [1]}, "bad_gen_kwarg"),
    ({"do_sample": True, "temperature": "0"}, "contradictory_gen_kwargs"),
  ],
)
def test_bad_generation_settings_are_refused(settings, code):
  with pytest.raises(UserError) as error:
    lm_eval_settings.read_generation_settings(settings, 256)
  assert error.value.code == code


@pytest.mark.parametrize(
  "settings, expected",
  [
    ({}, ((), 256, 0.0, 1.0, 0)),
    (
      {"until": "a", "max_tokens": "5", "max_gen_toks": 5},
      (("a",), 5, 0.0, 1.0, 0),
    ),
    ({"temperature": 0.5, "top_p": 0.9}, ((), 256, 0.5, 0.9, 0)),
    ({"do_sample": True, "top_k": 3}, ((), 256, 1.0, 1.0, 3)),
    ({"do_sample": False, "temperature": 0.5}, ((), 256, 0.0, 1.0, 0)),
  ],
)
def test_generation_settings(settings, expected):
  assert lm_eval_settings.read_generation_settings(settings, 256) == expected


def test_a_missing_harness_is_one_error(gpt2, monkeypatch):
  monkeypatch.setattr(adapter, "_Base", object)
  for body in (lambda: adapter.Model(gpt2), adapter.register):
    with pytest.raises(UserError) as error:
      body()
    assert error.value.code == "missing_library"
    assert "pip install lm_eval" in error.value.fix
