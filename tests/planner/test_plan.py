"""Plans: of whole experiments, by arithmetic and by a TPU's compiler."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.planner import compiled, hardware, memory, plan

# Bfloat16 in a scanned loop, as the large presets are.
LARGE = {"model.dtype": "bfloat16", "model.scan_layers": True}
needs_compiler = pytest.mark.skipif(
  not compiled.possible(hardware.topology("v5p:2x2x1")),
  reason="libtpu is not installed",
)


def planned(experiment, preset, topology, *, compiling=False, **values):
  mesh = {f"mesh.{k}": values.pop(k) for k in ("fsdp", "tensor")}
  config = flags.replace(presets.EXPERIMENTS[experiment](preset), values | mesh)
  paper = None if preset == "tiny" else presets.model("6b")
  return plan.make(
    config,
    hardware.topology(topology),
    reward_model=paper,
    compiling=compiling,
  )


def command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "instructgpt_jax.planner", *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )


def test_what_is_held_is_the_shapes_bytes():
  """float32: the policy four times with both moments and its average."""
  found = planned("ppo_ptx", "175b", "v5p:8x8x8", fsdp=64, tensor=8)
  share = 4 * found.work.parameters / 512
  assert found.held["policy parameters"] == pytest.approx(share, rel=0.01)
  assert found.held["policy optimiser"] == pytest.approx(2 * share, rel=0.01)
  assert found.held["policy average"] == found.held["reference"]
  without = planned(
    "ppo_ptx", "175b", "v5p:8x8x8", fsdp=64, tensor=8, **{"ppo.ema_decay": 0.0}
  )
  assert without.kept == found.kept - found.held["policy average"]


def test_operations_are_those_of_the_equation():
  """6 · parameters · tokens; a layer again, but for its last product."""
  found = planned("sft", "175b", "v5p:8x8x8", fsdp=64, tensor=8)
  _, cost, _ = found.costs["step"]
  c, tokens = found.work.model, found.work.tokens
  blocks = 12 * c.num_layers * c.d_model**2
  head = 6 * c.padded_vocab_size * c.d_model
  # Two products ahead, twice, and seven of the kernel's for the gradient.
  attention = 11 * 2 * c.max_seq_len * c.d_model * c.num_layers * 5 / 8
  wanted = tokens * ((6 + 2 * 8 / 12) * blocks + head + attention) / 512
  assert cost.flops == pytest.approx(wanted, rel=0.01)


def test_half_the_chips_hold_twice_as_much():
  whole, half = (
    planned("sft", "6b", name, fsdp=fsdp, tensor=1)
    for name, fsdp in (("h100:64", 64), ("h100:32", 32))
  )
  assert half.kept == pytest.approx(2 * whole.kept, rel=0.01)


def test_a_plan_that_does_not_fit_says_what_does():
  done = command(
    "--experiment=sft", "--preset=6b", "--topology=h100:8", "--mesh.data=8"
  )
  assert done.returncode == 1, done.stderr
  assert "does not fit" in done.stdout
  *_, last = done.stdout.splitlines()
  again = command(
    "--experiment=sft",
    "--preset=6b",
    "--topology=h100:8",
    *last.removeprefix("try ").split(),
  )
  assert again.returncode == 0, again.stderr
  assert re.search(r"\nfits: at most [\d.]+ of 60 GB", again.stdout)


def test_a_gpu_plan_leaves_what_jax_does_not_reserve(monkeypatch):
  monkeypatch.delenv(memory.FRACTION, raising=False)
  base_plan = planned("sft", "tiny", "h100:8", fsdp=8, tensor=1)
  assert base_plan.usable == 0.75 * 80e9 and base_plan.fits

  def with_peak(size):
    held = {**base_plan.held, "more": size - base_plan.peak}
    return dataclasses.replace(base_plan, held=held)

  # A tenth is left for what arithmetic misses.
  assert with_peak(53.9e9).fits and not with_peak(54.1e9).fits
  assert memory.FRACTION in plan.text(with_peak(54.1e9), "sft", 0.0)
  monkeypatch.setenv(memory.FRACTION, "0.95")
  assert with_peak(54.1e9).fits and not with_peak(69e9).fits
  for text in ("2", "0", "most", "nan"):
    monkeypatch.setenv(memory.FRACTION, text)
    with pytest.raises(UserError) as error:
      assert base_plan.fits
    assert error.value.code == "bad_memory_fraction"
  # All of a TPU's is JAX's.
  chip = hardware.topology("v5p:2x2x1").chip
  assert memory.fraction(chip) == 1.0


SMALL = {
  "model.d_model": 192,
  "model.num_layers": 2,
  "model.max_seq_len": 64,
  "tokenizer.vocab_size": 2048,
  "data.max_prompt_tokens": 32,
  "data.max_response_tokens": 32,
  "sft.batch_size": 8,
}


def activations(**values):
  topology = values.pop("topology", "h100:1")
  found = planned("sft", "tiny", topology, fsdp=1, **SMALL, **values)
  (_, cost, _) = found.costs["step"]
  return found.kept_within["activations"], cost


def test_a_gpu_has_no_lanes():
  """Two residuals, q, k, v and what is attended, and the MLP's: by hand."""
  tokens, item = 8 * 64, 4
  by_hand = 2 * tokens * item * (2 * 192 + 4 * 192 + 4 * 192)
  for heads in (1, 3, 12):
    values = {"tensor": 1, "model.num_heads": heads, "model.remat": "none"}
    assert activations(**values)[0] == by_hand
  on_tpu, _ = activations(
    topology="v5p:1x1x1",
    tensor=1,
    **{"model.num_heads": 3, "model.remat": "none"},
  )
  # A head of 64 fills 128 lanes there.
  assert on_tpu == 2 * tokens * item * (2 * 192 + 2 * 4 * 192 + 4 * 192)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_undivided_heads_are_whole_on_each_chip(remat):
  """FLOPs: the attention's on each of 4 chips, the rest a quarter."""
  values = {"model.remat": remat, "model.num_heads": 6}
  kept, one = activations(tensor=1, **values)
  kept_here, here = activations(topology="h100:4", tensor=4, **values)
  forward, backward = 2, 4
  again = 2 if remat == "full" else 0
  tokens = 8 * 64
  each = forward + backward + again
  projections = each * tokens * 2 * 4 * 192**2
  assert here.flops > one.flops / 4 + 0.75 * projections
  # All that is not attention's is split: the MLP and the head.
  mlp = tokens * 2 * 2 * 4 * 192**2 * (each - again / 2)
  head = 6 * tokens * 192 * 2048
  assert one.flops - here.flops == pytest.approx(0.75 * (mlp + head), rel=0.01)
  if remat == "none":
    tokens_kept = 2 * tokens * 4
    assert kept_here == tokens_kept * (2 * 192 + 4 * 192 + 192)
  assert here.memory > one.memory / 4
  divided, split = activations(
    topology="h100:4", tensor=4, **values | {"model.num_heads": 4}
  )
  assert split.flops == pytest.approx(one.flops / 4, rel=0.02)
  assert divided <= kept_here


def test_undivided_groups_and_mlp_are_whole_on_each_chip():
  base = {"model.num_heads": 4, "model.num_kv_heads": 2, "model.remat": "none"}
  whole = activations(topology="h100:4", tensor=4, **base)[1]
  part = activations(topology="h100:4", tensor=4, **base | {
    "model.num_kv_heads": 4})[1]  # fmt: skip
  one = activations(tensor=1, **base)[1]
  pairs = 3 * 2 * 8 * 64 * 2 * 192 * 2 * 96 / 2
  assert whole.flops - one.flops / 4 == pytest.approx(
    0.75 * pairs * 2, rel=0.01
  )
  assert part.flops == pytest.approx((one.flops + 2 * pairs) / 4, rel=0.01)
  odd = {"model.num_heads": 4, "model.d_ff": 766, "model.remat": "none"}
  one, whole = (
    activations(topology=f"h100:{n}", tensor=n, **odd)[1] for n in (1, 4)
  )
  mlp = 3 * 2 * 8 * 64 * 2 * 192 * 2 * 766
  assert whole.flops - one.flops / 4 == pytest.approx(0.75 * mlp, rel=0.01)


@pytest.mark.parametrize(
  "values, most",
  [
    ({"num_heads": 12}, 4),
    ({"num_heads": 6}, 2),
    ({"num_heads": 8, "num_kv_heads": 2}, 2),
    ({"num_heads": 8, "d_ff": 36}, 4),
    ({"num_heads": 8, "num_kv_heads": 1}, 1),
  ],
)
def test_layouts_divide_heads_and_mlps(values, most):
  model = configs.Model(
    d_model=96 if values["num_heads"] != 8 else 64, **values
  )
  found = [mesh.tensor for mesh in plan.layouts([model], 8)]
  assert max(found) == most
  # Of PPO's reward model as well.
  other = configs.Model(d_model=64, num_heads=1)
  assert {m.tensor for m in plan.layouts([model, other], 8)} == {1}


@pytest.mark.parametrize("experiment", ["sft", "reward", "ppo", "ppo_ptx"])
def test_adapters_have_a_plan(experiment):
  values = {"fsdp": 8, "tensor": 1}
  whole = planned(experiment, "tiny", "h100:8", **values)
  plan = planned(
    experiment, "tiny", "h100:8", **values, **{"model.lora_rank": 4}
  )
  name = "policy " * experiment.startswith("ppo")
  assert plan.held[f"{name}parameters"] < whole.held[f"{name}parameters"]
  frozen = plan.held[f"{name}frozen parameters"]
  assert frozen == pytest.approx(whole.held[f"{name}parameters"], rel=0.01)
  if experiment != "reward" and name:
    assert plan.held["reference"] == plan.held["policy parameters"]


def test_layouts_are_ranked():
  done = command(
    "--experiment=sft", "--preset=6b", "--topology=h100:8", "--sweep_mesh"
  )
  assert done.returncode == 0, done.stderr
  rows = [line.split() for line in done.stdout.splitlines()[2:]]
  assert all(int(d) * int(f) * int(t) == 8 for d, f, t, *_ in rows)
  fits = [row[4] == "yes" for row in rows]
  assert fits == sorted(fits, reverse=True) and not all(fits)
  seconds = [float(row[5]) for row in rows if row[4] == "yes"]
  assert seconds == sorted(seconds)


@pytest.mark.parametrize(
  "arguments, said",
  [
    (("--topology=h100:8", "--mesh.fsdp=3"), "does not make 8 devices"),
    (("--topology=h100:8", "--compile=true"), "there is no compiler"),
    (("--topology=h100:8", "--sft.epoch=3"), "did you mean --sft.epochs"),
    (("--topology=h100:8", "--preset=17b"), "there is no preset"),
    (("--topology=h100:8", "--reward_preset=7x"), "--reward_preset"),
    ((), "--topology"),
  ],
)
def test_mistakes(arguments, said):
  done = command("--experiment=sft", *arguments)
  assert done.returncode == 2
  assert said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
  "experiment, values",
  [
    ("pretrain", {"pretrain.microbatch": 5}),
    ("pretrain", {"pretrain.batch_size": 12}),
    ("reward", {"reward.microbatch": 5}),
    ("reward", {"reward.batch_size": 12}),
  ],
)
def test_batches_that_a_run_would_refuse(experiment, values):
  with pytest.raises(UserError, match="does not divide|cannot be split"):
    planned(experiment, "tiny", "h100:8", fsdp=8, tensor=1, **values)


@pytest.mark.parametrize(
  "experiment, values",
  [
    ("ppo", {"ppo.rollout_batch": 16, "ppo.minibatch": 8}),
    ("ppo_ptx", {"ppo.rollout_batch": 12, "ppo.minibatch": 2}),
    ("pretrain", {"pretrain.batch_size": 16}),
    ("reward", {"reward.batch_size": 16}),
  ],
)
def test_a_batch_that_does_not_split_is_refused(experiment, values):
  """Pretraining rows of PPO-ptx too: 2 · 2 of them are fewer than 6 shards."""
  if experiment == "ppo_ptx":
    values = values | {"ppo.ptx_ratio": 2, "ppo.ptx_microbatch": 1}
  with pytest.raises(UserError) as error:
    planned(experiment, "tiny", "h100:6", fsdp=2, tensor=1, **values)
  assert error.value.code == "uneven_batch" and error.value.field == "mesh"


@pytest.mark.parametrize("microbatch", [3, 8])
def test_a_microbatch_that_does_not_divide_the_minibatch(microbatch):
  """One that is larger than the minibatch has no row to pack episodes into."""
  values = {"ppo.rollout_batch": 16, "ppo.minibatch": 4}
  with pytest.raises(UserError) as error:
    planned(
      "ppo",
      "tiny",
      "h100:2",
      fsdp=1,
      tensor=1,
      **values,
      **{"ppo.microbatch": microbatch},
    )
  assert error.value.code == "not_a_divisor"
  assert error.value.field == "ppo.microbatch"


@pytest.mark.parametrize(
  "topology, flags",
  [("h100:6", []), ("h100:6", ["--sweep_mesh"]), ("v5p:2x2x3", [])],
)
def test_a_rollout_batch_that_chips_do_not_divide(topology, flags):
  done = command(
    "--experiment=ppo",
    "--preset=125m",
    f"--topology={topology}",
    "--compile=false",
    *flags,
  )
  assert done.returncode == 2 and not done.stdout
  assert "a batch of 512 rows cannot be sharded over" in done.stderr
  assert "Traceback" not in done.stderr


def test_a_plan_without_another_layout_says_why():
  """Four heads of keys and values leave no tensor axis of 3."""
  done = command(
    "--experiment=ppo_ptx",
    "--preset=125m",
    "--topology=h100:6",
    "--mesh.tensor=3",
    "--model.lora_rank=8",
    "--model.num_kv_heads=4",
  )
  assert done.returncode == 1, done.stderr
  assert "no layout to try" in done.stdout
  assert "cannot be sharded over 3 devices" in done.stdout


def tiny(experiment, **values):
  return flags.replace(presets.EXPERIMENTS[experiment]("tiny"), values)


def test_a_sweep_without_a_layout_says_why():
  chips = hardware.topology("h100:6")
  model = {"model.d_model": 96, "model.num_heads": 6, "model.d_ff": 96}
  with pytest.raises(UserError) as error:  # 6, 3 and 2 shards, and 1
    plan.sweep(tiny("pretrain", **{"pretrain.microbatch": 5}), chips, None)
  assert error.value.code == "not_a_divisor"
  one = tiny("pretrain", **{"pretrain.batch_size": 16, "model.num_heads": 1})
  with pytest.raises(UserError) as error:  # 6 shards alone
    plan.sweep(one, chips, None)
  assert error.value.code == "uneven_batch"
  two = {"model.num_heads": 2, "pretrain.batch_size": 16}
  with pytest.raises(UserError) as error:  # 6 shards, or 3
    plan.sweep(tiny("pretrain", **model | two), chips, None)
  assert error.value.code == "no_layout"
  assert "multiples of 3" in error.value.fix
  # 2 shards or 1 with tensor axes of 3 and 6.
  three = tiny("pretrain", **model | {"pretrain.batch_size": 16})
  layouts = [mesh for mesh, _ in plan.sweep(three, chips, None)]
  assert {mesh.tensor for mesh in layouts} == {3, 6}


def test_only_ppo_is_limited_by_a_reward_models_heads():
  """6B's 32 heads leave no tensor axis of 3 or 6, and 256 rows no other."""
  done = command(
    "--experiment=pretrain",
    "--preset=125m",
    "--topology=h100:6",
    "--sweep_mesh",
  )
  assert done.returncode == 0, done.stderr
  rows = [line.split() for line in done.stdout.splitlines()[2:]]
  assert {row[2] for row in rows} == {"3", "6"}


@pytest.mark.parametrize("experiment", ["pretrain", "sft", "reward"])
def test_a_reward_preset_is_ppos(experiment):
  done = command(
    f"--experiment={experiment}", "--topology=h100:8", "--reward_preset=6b"
  )
  assert done.returncode == 2 and "no reward model" in done.stderr


def test_sft_fills_its_batch_as_a_run_does():
  """Whole microbatches on every chip, documents on top."""

  def rows(**values):
    values = {f"sft.{name}": value for name, value in values.items()}
    found = planned("sft", "tiny", "h100:8", fsdp=8, tensor=1, **values)
    return found.work.examples

  assert rows(batch_size=12) == 16
  assert rows(batch_size=12, microbatch=5) == 24  # 3 microbatches, 8 chips
  assert rows(batch_size=12, pretraining_fraction=0.5) == 24


@pytest.mark.parametrize(
  "flag, said",
  [
    ("--ppo.microbatch=5", "5 does not divide the 64 rows"),
    ("--ppo.ptx_microbatch=5", "5 does not divide the 512 rows"),
    ("--ppo.minibatch=60", "60 does not divide rollout_batch"),
  ],
)
def test_batches_that_ppo_would_refuse(flag, said):
  done = command("--experiment=ppo_ptx", "--topology=h100:8", flag)
  assert done.returncode == 2
  assert said in done.stderr and "Traceback" not in done.stderr


@needs_compiler
def test_an_axis_may_end_amid_a_side_of_the_torus():
  """8 · 8 chips of 4 × 4 × 4."""
  sizes = configs.Mesh(data=8, fsdp=8, tensor=1)
  found = compiled.mesh(hardware.topology("v5p:4x4x4"), sizes)
  assert dict(found.shape) == {"data": 8, "fsdp": 8, "tensor": 1}


@needs_compiler
def test_arithmetic_agrees_with_the_compiler():
  """Peak and operations within 10 %; no work is done twice on the mesh."""
  made, found = (
    planned("sft", "tiny", "v5p:2x2x1", compiling=c, fsdp=2, tensor=2, **LARGE)
    for c in (True, False)
  )
  assert found.peak == pytest.approx(made.peak, rel=0.1)
  (_, wanted, _), (_, cost, _) = made.costs["step"], found.costs["step"]
  assert cost.flops == pytest.approx(wanted.flops, rel=0.1)
  assert wanted.compiling and cost.compiling is None
  assert made.fits and found.fits


SFT = {"sft.batch_size": 512}


@pytest.mark.soak
@needs_compiler
@pytest.mark.parametrize(
  "experiment, preset, topology, values, near",
  [
    ("sft", "125m", "v5p:2x2x1", dict(fsdp=4, tensor=1), 0.1),
    ("sft", "350m", "v5p:2x2x2", dict(fsdp=2, tensor=2), 0.1),
    ("ppo_ptx", "1.3b", "v5p:2x2x2", dict(fsdp=8, tensor=1), 0.1),
    ("sft", "175b", "v5p:8x8x8", dict(fsdp=64, tensor=8, **SFT), 0.1),
    ("ppo_ptx", "175b", "v5p:8x8x8", dict(fsdp=64, tensor=8), 0.1),
  ],
)
def test_the_papers_sizes(experiment, preset, topology, values, near):
  """Compiled programs fit; arithmetic finds their peak."""
  made, found = (
    planned(experiment, preset, topology, compiling=c, **values)
    for c in (True, False)
  )
  print(plan.text(made, f"{experiment} {preset}", 0.0))
  assert made.fits
  assert found.peak == pytest.approx(made.peak, rel=near)
  for name, (_, cost, _) in made.costs.items():
    assert found.costs[name][1].flops == pytest.approx(cost.flops, rel=0.15)
  if experiment == "sft" and preset == "175b":
    assert made.utilisation() >= 0.5


@pytest.mark.soak
@needs_compiler
def test_weak_scaling():
  """SFT on 64 to 4,096 chips, as many rows each: seconds within 15 %."""
  found = [
    planned(
      "sft",
      "6b",
      topology,
      compiling=True,
      fsdp=64,
      tensor=1,
      **{"sft.batch_size": 2 * chips},
    )
    for topology, chips in (
      ("v5p:4x4x4", 64),
      ("v5p:8x8x8", 512),
      ("v5p:16x16x16", 4096),
    )
  ]
  seconds = [one.seconds(most=True) for one in found]
  print(seconds)
  assert max(seconds) <= 1.15 * seconds[0]
