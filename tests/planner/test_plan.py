"""Tests of plans of experiments, estimated and compiled for TPUs."""

import dataclasses
import re

import pytest

from instructgpt_jax import configs
from instructgpt_jax.cli import flags, process_settings
from instructgpt_jax.configs import presets
from instructgpt_jax.distributed import mesh as mesh_lib
from instructgpt_jax.errors import UserError
from instructgpt_jax.planner import (
  __main__ as planner_main,
)
from instructgpt_jax.planner import compiled, hardware, layouts, plan, text
from tests import printed

# Bfloat16 in a scanned loop, as the large presets are.
LARGE = {"model.dtype": "bfloat16", "model.scan_layers": True}
needs_compiler = pytest.mark.skipif(
  not compiled.can_compile(hardware.parse_topology("v5p:2x2x1")),
  reason="libtpu is not installed",
)


def planned(experiment, preset, topology, *, compiling=False, **values):
  mesh = {f"mesh.{k}": values.pop(k) for k in ("fsdp", "tensor")}
  config = flags.replace(presets.EXPERIMENTS[experiment](preset), values | mesh)
  rewards = [] if preset == "tiny" else [presets.model("6b")]
  return plan.make_plan(
    config,
    hardware.parse_topology(topology),
    reward_models=rewards,
    compiling=compiling,
  )


@dataclasses.dataclass(frozen=True)
class Result:
  """Exit status and output of the planner's command."""

  returncode: int
  stdout: str
  stderr: str
  error: UserError | None  # that is printed


@pytest.fixture
def command(capsys, monkeypatch):
  """Runs the planner's command in this process."""
  monkeypatch.setattr(process_settings, "silence_libraries", lambda: None)

  errors = printed.record_errors(monkeypatch)

  def run(*arguments):
    capsys.readouterr()
    errors.clear()
    status = planner_main.main(arguments)
    output = capsys.readouterr()
    error = errors[0] if errors else None
    return Result(status, output.out, output.err, error)

  return run


def test_each_reward_model_of_an_ensemble_has_memory_and_a_pass():
  base = presets.ppo("tiny")
  rewards = [base.model, dataclasses.replace(base.model, num_layers=1)]

  def workload(models, **settings):
    config = flags.replace(base, settings)
    mesh = mesh_lib.abstract_mesh(config.mesh, 1, "cpu")
    return plan.make_workload(config, mesh, "cpu", models)

  settings = {"ppo.reward_model": "a,b", "ppo.reward_ensemble": "worst"}
  one, two = workload(rewards[:1]), workload(rewards, **settings)
  sizes = {n: plan.bytes_per_chip(tree) for n, tree in two.resident.items()}
  single = plan.bytes_per_chip(one.resident["reward model"])
  assert sizes["reward model 1"] == single > sizes["reward model 2"]
  assert len(two.programs[1].passes) == len(one.programs[1].passes) + 1


def test_resident_bytes_follow_from_shapes():
  """float32: parameters, two moments and the average of the policy."""
  result = planned("ppo_ptx", "175b", "v5p:8x8x8", fsdp=64, tensor=8)
  share = 4 * result.workload.parameters / 512
  assert result.resident["policy parameters"] == pytest.approx(share, rel=0.01)
  assert result.resident["policy optimiser"] == pytest.approx(
    2 * share, rel=0.01
  )
  assert result.resident["policy average"] == result.resident["reference"]
  without = planned(
    "ppo_ptx", "175b", "v5p:8x8x8", fsdp=64, tensor=8, **{"ppo.ema_decay": 0.0}
  )
  assert (
    without.resident_bytes
    == result.resident_bytes - result.resident["policy average"]
  )


def test_flops_agree_with_the_formula():
  """6 · parameters · tokens, and recomputed layers but for one matmul."""
  result = planned("sft", "175b", "v5p:8x8x8", fsdp=64, tensor=8)
  _, cost, _ = result.costs["step"]
  c, tokens = result.workload.model, result.workload.tokens
  blocks = 12 * c.num_layers * c.d_model**2
  head = 6 * c.padded_vocab_size * c.d_model
  # Two matmuls in the forward pass, twice, and seven in the backward kernel.
  attention = 11 * 2 * c.max_seq_len * c.d_model * c.num_layers * 5 / 8
  expected = tokens * ((6 + 2 * 8 / 12) * blocks + head + attention) / 512
  assert cost.flops == pytest.approx(expected, rel=0.01)


def test_half_the_chips_hold_twice_the_bytes():
  whole, half = (
    planned("sft", "6b", name, fsdp=fsdp, tensor=1)
    for name, fsdp in (("h100:64", 64), ("h100:32", 32))
  )
  assert half.resident_bytes == pytest.approx(
    2 * whole.resident_bytes, rel=0.01
  )


def test_flags_suggested_for_a_plan_that_does_not_fit_do_fit(command):
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


def test_a_gpu_plan_fits_the_memory_that_jax_reserves(monkeypatch):
  monkeypatch.delenv(hardware.FRACTION, raising=False)
  base_plan = planned("sft", "tiny", "h100:8", fsdp=8, tensor=1)
  assert base_plan.usable_bytes == 0.75 * 80e9 and base_plan.fits

  def with_peak(size):
    resident = {**base_plan.resident, "more": size - base_plan.peak_bytes}
    return dataclasses.replace(base_plan, resident=resident)

  # A tenth stays free in an estimate.
  assert with_peak(53.9e9).fits and not with_peak(54.1e9).fits
  assert hardware.FRACTION in text.format_plan(with_peak(54.1e9), "sft", 0.0)
  monkeypatch.setenv(hardware.FRACTION, "0.95")
  assert with_peak(54.1e9).fits and not with_peak(69e9).fits
  for value in ("2", "0", "most", "nan"):
    monkeypatch.setenv(hardware.FRACTION, value)
    with pytest.raises(UserError) as error:
      assert base_plan.fits
    assert error.value.code == "bad_memory_fraction"
  # JAX reserves all of a TPU's memory.
  chip = hardware.parse_topology("v5p:2x2x1").chip
  assert hardware.memory_fraction(chip) == 1.0


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
  result = planned("sft", "tiny", topology, fsdp=1, **SMALL, **values)
  (_, cost, _) = result.costs["step"]
  return result.saved["activations"], cost


def test_only_tpus_pad_heads_to_lanes():
  """By hand: two residuals; q, k, v and attention outputs; the MLP."""
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
  # A TPU pads a head of 64 to 128 lanes.
  assert on_tpu == 2 * tokens * item * (2 * 192 + 2 * 4 * 192 + 4 * 192)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_heads_that_tensor_does_not_divide_are_replicated(remat):
  """Each of 4 chips computes all of attention and a quarter of the rest."""
  values = {"model.remat": remat, "model.num_heads": 6}
  _, one = activations(tensor=1, **values)
  saved, here = activations(topology="h100:4", tensor=4, **values)
  forward, backward = 2, 4
  again = 2 if remat == "full" else 0
  tokens = 8 * 64
  each = forward + backward + again
  projections = each * tokens * 2 * 4 * 192**2
  assert here.flops > one.flops / 4 + 0.75 * projections
  # The MLP and the head are sharded.
  mlp = tokens * 2 * 2 * 4 * 192**2 * (each - again / 2)
  head = 6 * tokens * 192 * 2048
  assert one.flops - here.flops == pytest.approx(0.75 * (mlp + head), rel=0.01)
  if remat == "none":
    item = 2 * tokens * 4
    assert saved == item * (2 * 192 + 4 * 192 + 192)
  assert here.hbm_bytes > one.hbm_bytes / 4
  divided, split = activations(
    topology="h100:4", tensor=4, **values | {"model.num_heads": 4}
  )
  assert split.flops == pytest.approx(one.flops / 4, rel=0.02)
  assert divided <= saved


def test_kv_heads_and_mlps_that_tensor_does_not_divide_are_replicated():
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
  "values, largest",
  [
    ({"num_heads": 12}, 4),
    ({"num_heads": 6}, 2),
    ({"num_heads": 8, "num_kv_heads": 2}, 2),
    ({"num_heads": 8, "d_ff": 36}, 4),
    ({"num_heads": 8, "num_kv_heads": 1}, 1),
  ],
)
def test_layouts_divide_heads_and_mlps(values, largest):
  model = configs.Model(
    d_model=96 if values["num_heads"] != 8 else 64, **values
  )
  sizes = [mesh.tensor for mesh in layouts.layouts([model], 8)]
  assert max(sizes) == largest
  # The heads of PPO's reward model limit it as well.
  other = configs.Model(d_model=64, num_heads=1)
  assert {m.tensor for m in layouts.layouts([model, other], 8)} == {1}


@pytest.mark.parametrize("experiment", ["sft", "reward", "ppo", "ppo_ptx"])
def test_adapters_have_a_plan(experiment):
  values = {"fsdp": 8, "tensor": 1}
  whole = planned(experiment, "tiny", "h100:8", **values)
  adapted = planned(
    experiment, "tiny", "h100:8", **values, **{"model.lora_rank": 4}
  )
  name = "policy " * experiment.startswith("ppo")
  assert (
    adapted.resident[f"{name}parameters"] < whole.resident[f"{name}parameters"]
  )
  frozen = adapted.resident[f"{name}frozen parameters"]
  assert frozen == pytest.approx(whole.resident[f"{name}parameters"], rel=0.01)
  if experiment != "reward" and name:
    assert (
      adapted.resident["reference"] == adapted.resident["policy parameters"]
    )


def test_layouts_are_ranked(command):
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
  "arguments, field, code",
  [
    (("--topology=h100:8", "--mesh.fsdp=3"), "mesh", "mesh_size"),
    (("--topology=h100:8", "--compile=true"), "--compile", "no_compiler"),
    (("--topology=h100:8", "--sft.epoch=3"), "--sft.epoch", "unknown_flag"),
    (("--topology=h100:8", "--preset=17b"), "--preset", "unknown_preset"),
    (
      ("--topology=h100:8", "--reward_preset=7x"),
      "--reward_preset",
      "no_reward_model",
    ),
    ((), None, "bad_flag"),
  ],
)
def test_user_errors_are_two_lines_with_status_2(
  command, arguments, field, code
):
  done = command("--experiment=sft", *arguments)
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 2
  assert (done.error.field, done.error.code) == (field, code)


@pytest.mark.parametrize(
  "experiment, values",
  [
    ("pretrain", {"pretrain.microbatch": 5}),
    ("pretrain", {"pretrain.batch_size": 12}),
    ("reward", {"reward.microbatch": 5}),
    ("reward", {"reward.batch_size": 12}),
  ],
)
def test_a_plan_refuses_the_batches_that_a_run_refuses(experiment, values):
  with pytest.raises(UserError) as error:
    planned(experiment, "tiny", "h100:8", fsdp=8, tensor=1, **values)
  assert error.value.code in ("not_a_divisor", "uneven_batch")


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
  """For PPO-ptx: 2 · 2 pretraining rows are fewer than 6 shards."""
  if experiment == "ppo_ptx":
    values = values | {"ppo.ptx_ratio": 2, "ppo.ptx_microbatch": 1}
  with pytest.raises(UserError) as error:
    planned(experiment, "tiny", "h100:6", fsdp=2, tensor=1, **values)
  assert error.value.code == "uneven_batch" and error.value.field == "mesh"


@pytest.mark.parametrize("microbatch", [3, 8])
def test_a_microbatch_that_does_not_divide_the_minibatch(microbatch):
  """A microbatch above the minibatch is refused as well."""
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
  "topology, flags, code",
  [
    ("h100:6", [], "uneven_batch"),
    ("h100:6", ["--sweep_mesh"], "no_layout"),
    ("v5p:2x2x3", [], "uneven_batch"),
  ],
)
def test_a_rollout_batch_that_chips_do_not_divide(
  command, topology, flags, code
):
  done = command(
    "--experiment=ppo",
    "--preset=125m",
    f"--topology={topology}",
    "--compile=false",
    *flags,
  )
  assert done.returncode == 2 and not done.stdout
  assert done.error.code == code and "512" in done.error.problem


def test_a_plan_without_another_layout_gives_the_reason(command):
  """Four KV heads allow no tensor axis of 3."""
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
  assert "3 shards" in done.stdout


def tiny(experiment, **values):
  return flags.replace(presets.EXPERIMENTS[experiment]("tiny"), values)


def test_a_sweep_without_a_layout_gives_the_reason():
  chips = hardware.parse_topology("h100:6")
  model = {"model.d_model": 96, "model.num_heads": 6, "model.d_ff": 96}
  with pytest.raises(UserError) as error:  # 6, 3 and 2 shards, and 1
    layouts.rank_layouts(
      tiny("pretrain", **{"pretrain.microbatch": 5}), chips, []
    )
  assert error.value.code == "not_a_divisor"
  one = tiny("pretrain", **{"pretrain.batch_size": 16, "model.num_heads": 1})
  with pytest.raises(UserError) as error:  # 6 shards alone
    layouts.rank_layouts(one, chips, [])
  assert error.value.code == "uneven_batch"
  two = {"model.num_heads": 2, "pretrain.batch_size": 16}
  with pytest.raises(UserError) as error:  # 6 shards, or 3
    layouts.rank_layouts(tiny("pretrain", **model | two), chips, [])
  assert error.value.code == "no_layout"
  assert "multiples of 3" in error.value.fix
  # Tensor axes of 3 and 6 leave 2 shards or 1.
  three = tiny("pretrain", **model | {"pretrain.batch_size": 16})
  ranked = [mesh for mesh, _ in layouts.rank_layouts(three, chips, [])]
  assert {mesh.tensor for mesh in ranked} == {3, 6}


def test_only_ppo_is_limited_by_a_reward_models_heads(command):
  """The 32 heads of a 6B reward model would allow no tensor axis of 3 or 6."""
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
def test_a_reward_preset_is_ppos(command, experiment):
  done = command(
    f"--experiment={experiment}", "--topology=h100:8", "--reward_preset=6b"
  )
  assert done.returncode == 2 and done.error.code == "no_reward_model"


def test_sft_pads_its_batch_as_a_run_does():
  """Rows are whole microbatches on every chip, plus pretraining rows."""

  def rows(**values):
    values = {f"sft.{name}": value for name, value in values.items()}
    result = planned("sft", "tiny", "h100:8", fsdp=8, tensor=1, **values)
    return result.workload.examples

  assert rows(batch_size=12) == 16
  assert rows(batch_size=12, microbatch=5) == 24  # 3 microbatches, 8 chips
  assert rows(batch_size=12, pretraining_fraction=0.5) == 24


@pytest.mark.parametrize(
  "flag, field",
  [
    ("--ppo.microbatch=5", "ppo.microbatch"),
    ("--ppo.ptx_microbatch=5", "ppo.ptx_microbatch"),
    ("--ppo.minibatch=60", "ppo.minibatch"),
  ],
)
def test_the_command_refuses_ppo_batches(command, flag, field):
  done = command("--experiment=ppo_ptx", "--topology=h100:8", flag)
  assert done.returncode == 2
  assert (done.error.field, done.error.code) == (field, "not_a_divisor")


@needs_compiler
def test_an_axis_may_take_part_of_a_torus_dimension():
  """8 · 8 chips of 4 × 4 × 4."""
  sizes = configs.Mesh(data=8, fsdp=8, tensor=1)
  result = compiled.topology_mesh(hardware.parse_topology("v5p:4x4x4"), sizes)
  assert dict(result.shape) == {"data": 8, "fsdp": 8, "tensor": 1}


@needs_compiler
def test_estimates_agree_with_the_compiler():
  """Peak and FLOPs agree within 10 %; no matmul is replicated."""
  made, estimated = (
    planned("sft", "tiny", "v5p:2x2x1", compiling=c, fsdp=2, tensor=2, **LARGE)
    for c in (True, False)
  )
  assert estimated.peak_bytes == pytest.approx(made.peak_bytes, rel=0.1)
  (_, expected, _), (_, cost, _) = made.costs["step"], estimated.costs["step"]
  assert cost.flops == pytest.approx(expected.flops, rel=0.1)
  assert expected.compile_seconds and cost.compile_seconds is None
  assert made.fits and estimated.fits


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
  """Compiled programs fit, and estimates of their peak agree."""
  made, estimated = (
    planned(experiment, preset, topology, compiling=c, **values)
    for c in (True, False)
  )
  print(text.format_plan(made, f"{experiment} {preset}", 0.0))
  assert made.fits
  assert estimated.peak_bytes == pytest.approx(made.peak_bytes, rel=near)
  for name, (_, cost, _) in made.costs.items():
    assert estimated.costs[name][1].flops == pytest.approx(cost.flops, rel=0.15)
  if experiment == "sft" and preset == "175b":
    assert made.utilisation() >= 0.5


@pytest.mark.soak
@needs_compiler
def test_weak_scaling():
  """SFT on 64 to 4,096 chips with equal rows per chip: within 15 %."""
  plans = [
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
  seconds = [one.seconds(serial=True) for one in plans]
  print(seconds)
  assert max(seconds) <= 1.15 * seconds[0]
