"""The grammar of --sweep, and the paper's grids."""

import itertools
import math

import pytest

from experiments import policy_init, ppo, ppo_ptx, pretrain, reward, sft
from instructgpt_jax.configs import presets
from instructgpt_jax.errors import UserError
from instructgpt_jax.sweeps import grid
from tests.sweeps.fake import counter

CONFIG = counter.get_config()


def values(text, field="section.rate"):
  return [run[field] for run in grid.grid_runs(text, CONFIG).values()]


def test_a_grid_is_the_product_in_the_given_order():
  result = grid.grid_runs("section.rate=0.02,1e-5;seed=0..2", CONFIG)
  assert list(result) == [
    "rate=0.02,seed=0", "rate=0.02,seed=1", "rate=0.02,seed=2",
    "rate=1e-05,seed=0", "rate=1e-05,seed=1", "rate=1e-05,seed=2",
  ]  # fmt: skip
  assert result["rate=1e-05,seed=2"] == {"section.rate": 1e-5, "seed": 2}
  assert type(result["rate=0.02,seed=0"]["seed"]) is int


def test_values_have_their_fields_types():
  (run,) = grid.grid_runs(
    "section.loud=true;section.kind= a/b ;section.rate=3;section.size=2",
    CONFIG,
  ).values()
  assert list(run.values()) == [True, "a/b", 3.0, 2]
  assert [type(v) for v in run.values()] == [bool, str, float, int]


def test_a_log_range_has_equal_ratios_and_exact_ends():
  result = values("section.rate=log:1e-3:0.7:5")
  assert (result[0], result[-1], len(result)) == (1e-3, 0.7, 5)
  ratios = [b / a for a, b in itertools.pairwise(result)]
  assert ratios == pytest.approx([700**0.25] * 4, rel=1e-5)


def test_a_lin_range_has_equal_steps_and_items_mix():
  assert values("section.rate=lin:1:2:5,7") == [1, 1.25, 1.5, 1.75, 2, 7]
  assert values("section.rate=log:3:9:1") == [3]
  assert values("section.size=log:1:16:5,3", "section.size") == [
    1, 2, 4, 8, 16, 3,
  ]  # fmt: skip


def test_a_duplicate_value_is_one_run():
  assert values("section.size=lin:1:2:5,2", "section.size") == [1, 2]


def test_fields_that_go_together():
  result = grid.grid_runs("(section.size,seed)=(1,32),(2,64);steps=1,2", CONFIG)
  assert list(result) == [
    "size=1,seed=32,steps=1", "size=1,seed=32,steps=2",
    "size=2,seed=64,steps=1", "size=2,seed=64,steps=2",
  ]  # fmt: skip


def test_fields_of_one_run_are_checked_together():
  config = presets.sft("world")
  assert len(grid.grid_runs("model.d_model=33;model.num_heads=3", config)) == 1
  with pytest.raises(UserError) as error:
    grid.grid_runs("model.d_model=33;model.num_heads=5", config)
  assert error.value.code == "not_a_divisor"
  assert "'model.num_heads=5'" in error.value.problem


def test_names_are_short_safe_and_distinct():
  config = presets.ppo_ptx("world")
  text = "optimizer.learning_rate=1e-3;value_optimizer.learning_rate=1e-3"
  assert list(grid.grid_runs(text, config)) == [
    "optimizer.learning_rate=0.001,value_optimizer.learning_rate=0.001"
  ]
  result = list(grid.grid_runs("section.kind=a/b,a_b,a b", CONFIG))
  assert len(set(result)) == 3 and result[1] == "kind=a_b"
  assert not any(c in name for name in result for c in "/ ")
  result = list(grid.grid_runs("section.rate=0.12345678,0.12345679", CONFIG))
  assert len(set(result)) == 2
  text = ";".join(f"{name}=x" for name in ("init_from", "section.kind"))
  (name,) = grid.grid_runs(text.replace("x", "y" * 300), CONFIG)
  assert len(name) <= 150


@pytest.mark.parametrize(
  "text, part, code",
  [
    ("section.rat=1", "section.rat=1", "unknown_field"),
    ("seed=1;section.rate=x", "section.rate=x", "wrong_type"),
    ("section.rate=0", "section.rate=0", "not_allowed"),
    ("section.size=1.5", "section.size=1.5", "wrong_type"),
    ("section.loud=maybe", "section.loud=maybe", "wrong_type"),
    (" ; ", " ; ", "missing_sweep"),
    ("seed=", "seed=", "not_an_axis"),
    ("=1", "=1", "not_an_axis"),
    ("seed=1;seed=2", "seed=1", "set_twice"),
    ("seed=3..1", "seed=3..1", "empty_range"),
    ("section.rate=log:1:2", "section.rate=log:1:2", "missing_count"),
    ("section.rate=log:0:2:3", "section.rate=log:0:2:3", "no_points"),
    ("section.rate=log:1:y:3", "section.rate=log:1:y:3", "wrong_type"),
    ("section.rate=lin:1:2:0", "section.rate=lin:1:2:0", "no_points"),
    ("section.rate=lin:1:2:1.5", "section.rate=lin:1:2:1.5", "wrong_type"),
    ("(seed,steps)=(1,2),(3)", "(seed,steps)=(1,2),(3)", "point_size"),
    ("(seed,steps)=1,2", "(seed,steps)=1,2", "missing_brackets"),
    ("seed,steps=1,2", "seed,steps=1,2", "missing_brackets"),
    ("section=1", "section=1", "unknown_field"),
  ],
)
def test_errors_name_the_part_and_the_fix(text, part, code):
  with pytest.raises(UserError) as error:
    grid.grid_runs(text, CONFIG)
  assert error.value.code == code
  assert repr(part) in error.value.problem
  assert error.value.field == "--sweep"
  assert error.value.fix


def test_an_old_field_is_refused_with_its_new_name():
  with pytest.raises(UserError) as error:
    grid.grid_runs("model.heads=2", presets.sft("world"))
  assert error.value.code == "renamed_flag"
  assert "model.num_heads" in error.value.fix


def test_named_sweeps_and_fields_mix():
  text = grid.expand_names(" rates; seed=0,1 ;", counter.sweep)
  assert text == "section.rate=0.1,0.2;seed=0,1"
  assert grid.swept_fields(text) == ["section.rate", "seed"]
  for text, code in (("rate", "unknown_sweep"), ("", "missing_sweep")):
    with pytest.raises(UserError) as error:
      grid.expand_names(text, counter.sweep)
    assert error.value.code == code and error.value.field == "--sweep"
    assert "rates" in error.value.fix


def test_search_spaces():
  text = "section.rate=log:0.1:1;section.size=int:1:4;seed=lin:0:9;steps=1,2,5"
  assert grid.search_space(text + ";section.loud=true,false", CONFIG) == {
    "section.rate": grid.Range(0.1, 1.0, True, False),
    "section.size": grid.Range(1, 4, False, True),
    "seed": grid.Range(0, 9, False, True),
    "steps": grid.Choices((1, 2, 5)),
    "section.loud": grid.Choices((True, False)),
  }


@pytest.mark.parametrize(
  "text, code",
  [
    ("section.rate=log:0:1", "log_of_zero"),
    ("section.rate=lin:2:1", "empty_range"),
    ("section.rate=lin:-1:1", "not_allowed"),
    ("section.rate=int:1:4", "no_range"),
    ("section.kind=int:1:4", "no_range"),
    ("section.rate=0.1,-1", "not_allowed"),
    ("(seed,steps)=(1,2)", "several_fields"),
    ("nothing=lin:1:2", "unknown_field"),
  ],
)
def test_searches_that_make_no_sense(text, code):
  with pytest.raises(UserError) as error:
    grid.search_space(text, CONFIG)
  assert error.value.code == code and repr(text) in error.value.problem


def paper(module, name, preset="1.3b"):
  (field,) = grid.swept_fields(module.sweep()[name])
  result = grid.grid_runs(module.sweep()[name], module.get_config(preset))
  return [run[field] for run in result.values()]


def test_gamma_is_the_papers_grid():
  # Figure 33: 10^((-3+2k)/9), printed to three digits.
  result = paper(ppo_ptx, "ptx_coef")
  assert result == pytest.approx(
    [10 ** ((2 * k - 3) / 9) for k in range(12)], rel=1e-5
  )
  assert [float(f"{v:.3g}") for v in result] == [
    0.464, 0.774, 1.29, 2.15, 3.59, 5.99, 10, 16.7, 27.8, 46.4, 77.4, 129,
  ]  # fmt: skip


def test_beta_is_the_papers_grid():
  # Figure 34: 9 points up to 2 whose ratio is 10^(4/7).
  result = paper(ppo, "kl_coef")
  assert result == pytest.approx(
    [2 * 10 ** (-4 * k / 7) for k in range(8, -1, -1)], rel=1e-5
  )
  assert [float(f"{v:.2g}") for v in result[:5]] == [
    5.4e-5, 2e-4, 7.5e-4, 2.8e-3, 0.010,
  ]  # fmt: skip


@pytest.mark.parametrize("module", [ppo, ppo_ptx])
def test_ppo_rates_are_the_papers(module):
  # Figure 38; to a part in 500, as it prints three digits.
  assert paper(module, "learning_rate") == pytest.approx(
    [2.55e-6, 3.74e-6, 5.49e-6, 8.05e-6, 11.8e-6, 17.4e-6, 25.5e-6], rel=4e-3
  )


def test_sft_rates_hold_both_that_the_paper_chose():
  result = paper(sft, "learning_rate")
  assert len(result) == 7
  for chosen in (9.65e-6, 5.03e-6):
    assert min(abs(math.log(v / chosen)) for v in result) < 1e-3


@pytest.mark.parametrize(
  "module", [pretrain, sft, policy_init, reward, ppo, ppo_ptx]
)
def test_every_named_sweep_can_be_run(module):
  for preset in ("1.3b", "world"):
    for name, text in module.sweep().items():
      assert grid.grid_runs(text, module.get_config(preset)), name
