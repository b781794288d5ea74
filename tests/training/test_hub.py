"""Import of a Hugging Face model, all stages up to PPO-ptx, and export."""

import json

import jax
import numpy as np
import pytest

from instructgpt_jax.data.tokenizers import load_tokenizer
from instructgpt_jax.hub.__main__ import export_model, import_model
from instructgpt_jax.interop import directory
from instructgpt_jax.models.heads import abstract_params
from instructgpt_jax.sharding import unbox
from instructgpt_jax.training import inheritance, stage_model
from tests.devices import pretended
from tests.interop import tiny
from tests.locks import alone
from tests.training import hub, results, toy
from tests.training.stages import FAST

EIGHT = pretended(8, FAST["XLA_FLAGS"])
LIMITS = (
  "--preset=tiny",
  "--model.max_seq_len=24",
  "--data.max_prompt_tokens=12",
  "--data.max_response_tokens=6",
)
STAGES = {
  "sft": ("--sft.epochs=8", "--optimizer.learning_rate=2e-2"),
  "reward": (
    "--reward.batch_size=4",
    "--reward.epochs=2",
    "--optimizer.learning_rate=5e-4",
  ),
  "ppo_ptx": (
    "--optimizer.learning_rate=5e-4",
    "--value_optimizer.learning_rate=3e-4",
    "--ppo.episodes=32",
    "--ppo.rollout_batch=8",
    "--ppo.minibatch=4",
    "--ppo.ptx_sequence=24",
    "--ppo.ptx_microbatch=4",
  ),
}


class Runs:
  """Stages of one directory; each runs when it is first requested."""

  def __init__(self, kind, base, stages):
    self.base, self.stages = base, stages
    with alone(base / "hf"):
      if not (base / "hf").exists():
        hub.make(base / "hf", kind)
    self.source = str(base / "hf")

  def flags(self, name):
    command = [*LIMITS, *toy.RUN, *STAGES[name]]
    command += toy.sources(self.stages.data, *toy.READS[name])
    if name == "ppo_ptx":
      return [
        *command,
        f"--init_from={self['sft']}",
        f"--ppo.reward_model={self['reward']}",
      ]
    return [*command, f"--init_from={self.source}"]

  def __getitem__(self, name):
    path = self.base / name
    self.flags(name)  # Earlier stages; each has its own lock.
    with alone(path):
      if not (path / "complete.json").exists():
        self.run(name, path)
    return path

  def run(self, name, path, *more, **options):
    done = self.stages.run(
      name, *self.flags(name), *more, f"--workdir={path}", **options
    )
    assert done.status == 0, done.err


@pytest.fixture(scope="module", params=hub.MODELS)
def runs(request, shared, stages):
  return Runs(request.param, shared / "hub" / request.param, stages)


def test_sft_reward_and_ppo_and_out_again(runs, tmp_path):
  """Runs the README's worked example."""
  last = results.metrics(runs["ppo_ptx"])[-1]
  assert np.isfinite(last["kl"])
  losses = [m["loss"] for m in results.metrics(runs["sft"]) if "loss" in m]
  assert losses[-1] < 0.9 * losses[0]
  for name, scalar in (("ppo_ptx", False), ("reward", True)):
    out = tmp_path / name
    export_model(str(runs[name]), str(out))
    source = directory.inspect(out)
    assert source.scalar == scalar
    expected = directory.inspect(runs.source).config
    assert source.config.d_model == expected.d_model
    tokenizer = load_tokenizer(out)
    if not scalar:  # A reward model gets a padding token.
      assert tokenizer.files == load_tokenizer(runs.source).files
    inheritance.check_same_tokenizer(
      tokenizer, load_tokenizer(runs.source), "", ""
    )
  policy = stage_model.open_stage(str(runs["ppo_ptx"]))
  again = directory.load(
    directory.inspect(tmp_path / "ppo_ptx"),
    unbox(abstract_params(policy.network)),
  )
  restored = policy.params(unbox(abstract_params(policy.network)))
  size = expected.vocab_size
  np.testing.assert_array_equal(
    again["transformer"]["embedding"]["embedding"][:size],
    restored["transformer"]["embedding"]["embedding"][:size],
  )


def test_transformers_answers_the_same_text(runs, tmp_path):
  transformers = tiny.library("transformers")
  torch = tiny.library("torch")
  asked = ["red bo", "blue de ka", "green"]
  prompts = tmp_path / "prompts.jsonl"
  toy.write_lines(prompts, [{"prompt": text} for text in asked])
  actual = {}
  out = tmp_path / "out"
  export_model(str(runs["sft"]), str(out))
  for name, checkpoint in (("workdir", runs["sft"]), ("directory", out)):
    done = runs.stages.server.run(
      "instructgpt_jax.chat",
      f"--checkpoint={checkpoint}",
      f"--prompts={prompts}",
      f"--output={tmp_path / name}.jsonl",
      "--temperature=0",
      "--max_tokens=6",
    )
    assert done.status == 0, done.err
    lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
    actual[name] = [json.loads(line)["completion"] for line in lines]
  model = tiny.load(out)
  theirs = transformers.AutoTokenizer.from_pretrained(out)
  stage = stage_model.open_stage(str(runs["sft"]))
  for i, text in enumerate(asked):
    if theirs.chat_template:
      ids = theirs.apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        return_dict=False,
      )
    else:
      ids = theirs(f"Human: {text}\n\nAssistant:").input_ids
    with torch.no_grad():
      answer = model.generate(
        torch.tensor([ids]), max_new_tokens=6, do_sample=False
      )[0, len(ids) :]
    expected = stage.tokenizer.decode(answer.tolist())
    for name in actual:
      assert actual[name][i].split() == expected.split(), name


def test_eight_devices_match_one(runs, tmp_path):
  """Straight into the shards; vocabulary and heads filled up to divide them.

  The reward model, too, is another library's here.
  """
  mesh = ("--mesh.data=2", "--mesh.fsdp=2", "--mesh.tensor=2")
  runs.run("sft", tmp_path / "sft", *mesh, env=EIGHT)
  restored = stage_model.open_stage(str(tmp_path / "sft")).model_config
  assert (
    restored.padded_vocab_size % 2 == 0
    and restored.padded_vocab_size - restored.vocab_size < 2
  )
  assert (
    restored.padded_kv_heads % 2 == 0
    and restored.head_padding == restored.kv_heads % 2
  )
  export_model(str(runs["reward"]), str(tmp_path / "reward"))
  reward = f"--ppo.reward_model={tmp_path / 'reward'}"
  runs.run("ppo_ptx", tmp_path / "ppo", *mesh, reward, env=EIGHT)
  actual, expected = (
    results.metrics(path) for path in (tmp_path / "ppo", runs["ppo_ptx"])
  )
  assert len(actual) == len(expected) == 8
  for a, b in zip(actual[:4], expected, strict=False):
    assert a == pytest.approx(b, rel=2e-3, abs=2e-4)


def test_import_writes_a_stage(runs, tmp_path):
  import_model(runs.source, str(tmp_path / "stage"))
  stage = stage_model.open_stage(str(tmp_path / "stage"))
  direct = stage_model.open_stage(runs.source)
  assert stage.model_config == direct.model_config
  assert stage.tokenizer.files == direct.tokenizer.files
  shapes = unbox(abstract_params(stage.network))
  a, b = (s.params(shapes) for s in (stage, direct))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert {p.name for p in tmp_path.iterdir()} == {"stage"}
