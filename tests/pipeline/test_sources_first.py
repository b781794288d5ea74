"""Tests that a pipeline reads its sources first, and cleans up on errors."""

import dataclasses
import json
import pathlib

import pytest

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.data.prepared import layout
from instructgpt_jax.errors import UserError
from instructgpt_jax.pipeline import stages
from instructgpt_jax.pipeline.workdir import Pipeline
from instructgpt_jax.runs import claims, files
from instructgpt_jax.training import pretrain, sft
from instructgpt_jax.world import labelers
from tests.training import hub, toy


class Reached(Exception):
  """The first stage has been reached."""


@pytest.fixture
def sources(tmp_path):
  toy.write_data(tmp_path / "data")
  paths = {
    f"data.{kind}": str(tmp_path / "data" / f"{kind}.jsonl")
    for kind in toy.KINDS
  }
  return paths | {"evaluation.split": "valid"}


def start(folder, **values):
  """Runs a pipeline as its command does, up to its first stage."""
  config = flags.replace(presets.pipeline("tiny"), values)
  with claims.claim(folder, "pipeline", flags.config_to_dict(config)):
    stages.run(config, str(folder))


def stop(config, directory, **options):
  (files.make_directory(directory) / "metrics.jsonl").touch()
  raise Reached


def refused(folder, values):
  with pytest.raises(UserError) as caught:
    start(folder, **values)
  assert not folder.exists(), "files remain"
  return caught.value


@pytest.mark.parametrize("kind", toy.KINDS)
def test_a_mistyped_path_can_be_corrected(kind, sources, tmp_path, monkeypatch):
  monkeypatch.setattr(pretrain, "train", stop)
  folder = tmp_path / "run"
  wrong = sources[f"data.{kind}"] + "x"
  error = refused(folder, sources | {f"data.{kind}": wrong})
  assert error.file == wrong
  with pytest.raises(Reached):
    start(folder, **sources)


def test_a_bad_record_of_any_source_ends_it_before_training(
  sources, tmp_path, monkeypatch
):
  monkeypatch.setattr(pretrain, "train", stop)
  with open(sources["data.comparisons"], "a", encoding="utf-8") as file:
    file.write('{"prompt": "red ba", "completions": ["ka", "ke"]}\n')
  error = refused(tmp_path / "run", sources)
  assert error.line == 27


def test_a_setting_that_the_first_stage_refuses_can_be_corrected(
  sources, tmp_path
):
  error = refused(
    tmp_path / "run",
    sources | {"pretrain.batch_size": 8, "pretrain.microbatch": 3},
  )
  assert error.field == "pretrain.microbatch"


def test_the_world_is_written_again_after_such_an_error(tmp_path):
  small = {
    "world.pretraining_tokens": 5000, "world.demonstrations": 20,
    "world.train_prompts": 20, "world.test_prompts": 20,
    "world.public_comparisons": 20,
  }  # fmt: skip
  error = refused(
    tmp_path / "run",
    small | {"pretrain.batch_size": 8, "pretrain.microbatch": 3},
  )
  assert error.field == "pretrain.microbatch"


def test_sources_that_change_between_stages_are_refused(
  sources, tmp_path, monkeypatch
):
  monkeypatch.setattr(pretrain, "train", stop)
  folder = tmp_path / "run"
  for _ in range(2):
    with pytest.raises(Reached):
      start(folder, **sources)
  path = tmp_path / "data" / "prompts.jsonl"
  lines = path.read_text().splitlines()
  path.write_text("\n".join(lines[1:]) + "\n")
  with pytest.raises(UserError) as caught:
    start(folder, **sources)
  assert caught.value.code == "data_changed"
  assert caught.value.field == "data.prompts"
  assert (folder / "pretrain" / "metrics.jsonl").exists()


def test_validation_without_records_is_an_early_error(
  sources, tmp_path, monkeypatch
):
  monkeypatch.setattr(pretrain, "train", stop)
  path = tmp_path / "data" / "demonstrations.jsonl"
  records = [json.loads(line) for line in path.read_text().splitlines()]
  toy.write_lines(path, [r | {"split": "train"} for r in records])
  for select in ("loss", "reward"):
    error = refused(tmp_path / "run", sources | {"sft.select_by": select})
    assert (error.code, error.field) == ("no_validation", "sft.select_by")
  with pytest.raises(Reached):
    start(tmp_path / "run", **sources)


def with_base(sources, base):
  """The flags of a pipeline that starts from a directory."""
  optimizers = (
    "policy_init.optimizer",
    "reward.optimizer",
    "sft.optimizer",
    "ppo.optimizer",
    "ppo.value_optimizer",
  )
  return sources | {
    "init_from": str(base),
    "data.max_prompt_tokens": 10,
    "data.max_response_tokens": 6,
    "ppo.ptx_sequence": None,
    **{f"{name}.learning_rate": 1e-4 for name in optimizers},
  }


def test_another_base_model_between_stages_is_refused(
  sources, tmp_path, monkeypatch
):
  """Otherwise the stages of one report would come from two models."""
  monkeypatch.setattr(sft, "train", stop)
  base, folder = tmp_path / "base", tmp_path / "run"
  values = with_base(sources, hub.make(base, "llama"))
  for _ in range(2):
    with pytest.raises(Reached):
      start(folder, **values)
  path = base / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
  with pytest.raises(UserError) as caught:
    start(folder, **values)
  assert (caught.value.code, caught.value.field) == (
    "data_changed", "init_from",
  )  # fmt: skip


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_prompt_that_the_template_refuses_ends_it_before_training(
  split, sources, tmp_path, monkeypatch
):
  """Evaluation reads test prompts, and it comes after all training."""
  monkeypatch.setattr(sft, "train", stop)
  path = tmp_path / "data" / "prompts.jsonl"
  base = pathlib.Path(hub.make(tmp_path / "base", "llama"))
  settings = json.loads((base / "tokenizer_config.json").read_text())
  settings["chat_template"] = (
    "{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
  ) + settings["chat_template"]
  (base / "tokenizer_config.json").write_text(json.dumps(settings))
  values = with_base(sources, base)
  with pytest.raises(Reached):
    start(tmp_path / "run", **values)
  turns = [
    {"role": "system", "content": "ka"},
    {"role": "user", "content": "red ba"},
  ]
  with open(path, "a", encoding="utf-8") as file:
    file.write(json.dumps({"prompt": turns, "split": split}) + "\n")
  error = refused(tmp_path / "other", values)
  assert error.code == "template_refuses" and error.file == str(base)


def test_a_stage_keeps_the_best_by_a_metric_that_it_measures(tmp_path):
  """The other stages keep only the newest checkpoint."""
  config = flags.replace(presets.pipeline("tiny"), {})
  keep_best = {}
  for measure in ("valid_loss", "valid_rm_score", "reward", None):
    run = dataclasses.replace(config.run, keep_best=measure)
    pipeline = Pipeline(
      dataclasses.replace(config, run=run),
      str(tmp_path),
      has_gold=False,
      valid={"data.demonstrations": 3, "data.pretraining": 0},
    )
    scored = dataclasses.replace(config.sft, reward_model="rm")
    keep_best[measure] = [
      pipeline.stage_config(kind, "", **sections).run.keep_best
      for kind, sections in (
        (configs.PretrainExperiment, {}),
        (configs.SftExperiment, {}),
        (configs.SftExperiment, {"sft": scored}),
        (configs.RewardExperiment, {}),
        (configs.PpoExperiment, {}),
      )
    ]
  assert keep_best == {
    "valid_loss": [None, "valid_loss", "valid_loss", None, None],
    "valid_rm_score": [None, None, "valid_rm_score", None, None],
    "reward": [None, None, None, None, "reward"],
    None: [None] * 5,
  }


@pytest.mark.parametrize(
  "values, field",
  [
    ({"pretrain.sequence": 500}, "pretrain.sequence"),
    (
      {"pretrain.batch_size": 8, "pretrain.microbatch": 3},
      "pretrain.microbatch",
    ),
    ({"data.max_response_tokens": 500}, "data.max_response_tokens"),
    ({"reward.batch_size": 8, "reward.microbatch": 3}, "reward.microbatch"),
    ({"ppo.rollout_batch": 9, "ppo.minibatch": 4}, "ppo.minibatch"),
    ({"ppo.ptx_sequence": 500}, "ppo.ptx_sequence"),
  ],
)
def test_errors_of_later_stages_come_before_training(
  values, field, sources, tmp_path
):
  error = refused(tmp_path / "run", sources | values)
  assert error.field == field


def test_lengths_are_checked_against_the_models_own_context(sources, tmp_path):
  """The model has 24 positions; the preset does not set them."""
  values = with_base(sources, hub.make(tmp_path / "base", "llama"))
  values |= {"model.max_seq_len": 24, "ppo.ptx_sequence": 25}
  error = refused(tmp_path / "run", values)
  assert error.field == "ppo.ptx_sequence"
  values |= {"ppo.ptx_sequence": 24, "data.max_response_tokens": 15}
  assert refused(tmp_path / "run", values).field == "data.max_response_tokens"


@pytest.mark.parametrize(
  "field",
  [
    "data.demonstrations",
    "data.comparisons",
    "data.prompts",
    "reward_init.comparisons",
  ],
)
def test_a_pipeline_needs_files_where_rankings_are_written(
  field, sources, tmp_path
):
  """The splits of prepared sources do not know the prompts of other files."""
  records = tmp_path / "records"
  records.mkdir()
  (records / layout.MANIFEST).touch()
  error = refused(tmp_path / "run", sources | {field: str(records)})
  assert error.code == "prepared_rankings"
  assert (error.field, error.file) == (field, str(records))


@pytest.mark.parametrize(
  "values, code, field",
  [
    ({"reward.margin": "grade"}, "no_grades", "reward.margin"),
    ({"reward.leave_out": "nobody"}, "unknown_labeler", "reward.leave_out"),
    ({"reward_init.margin": "grade"}, "no_grades", "reward_init.margin"),
    (
      {"reward_init.leave_out": "nobody"},
      "unknown_labeler",
      "reward_init.leave_out",
    ),
  ],
)
@pytest.mark.parametrize("embedded", [False, True])
def test_settings_that_rankings_do_not_fit_end_it_before_training(
  embedded, values, code, field, sources, tmp_path, monkeypatch
):
  monkeypatch.setattr(pretrain, "train", stop)
  if embedded:
    sources = {
      "world.public_comparisons": 40,
      "world.pretraining_tokens": 2_000,
      "world.test_prompts": 20,
    }
  else:
    path = tmp_path / "graded.jsonl"
    lines = [
      {"prompt": f"p {i}", "completions": ["a", "b"], "ranks": [1, 2]}
      for i in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources |= {
      "data.comparisons": str(path),
      "reward_init.comparisons": sources["data.comparisons"],
    }
  if embedded and values == {"reward.margin": "grade"}:
    with pytest.raises(Reached):  # the labelers grade
      start(tmp_path / "run", **sources, **values)
    return
  error = refused(tmp_path / "run", sources | values)
  assert (error.code, error.field) == (code, field)
  assert "--reward." not in error.fix or field.startswith("reward.")


@pytest.mark.parametrize(
  "values, code, field",
  [
    (
      {"reward.leave_out": ",".join(labelers.TRAINING)},
      "no_rankings",
      "reward.leave_out",
    ),
    (
      {"reward.margin": "rank", "labeling.completions": 2},
      "no_grades",
      "reward.margin",
    ),
    (
      {"reward.margin": "rank", "reward.max_completions": 2},
      "no_grades",
      "reward.margin",
    ),
  ],
)
def test_settings_that_no_labels_fit_end_it_before_training(
  values, code, field, tmp_path
):
  sizes = {"world.pretraining_tokens": 2_000, "world.test_prompts": 20}
  error = refused(tmp_path / "run", sizes | values)
  assert (error.code, error.field) == (code, field)


def test_nothing_is_divided_before_the_rankings(sources, tmp_path, monkeypatch):
  monkeypatch.setattr(pretrain, "train", stop)
  values = {"evaluation.judge_fraction": 1e-9}
  assert refused(tmp_path / "run", sources | values).code == "too_few_rankings"
  with pytest.raises(Reached):
    start(tmp_path / "run", **sources, **values, until="policy_init")


@pytest.mark.parametrize(
  "section, field, named",
  [
    ("policy_init", "optimizer.warmup_steps", "policy_init.optimizer."),
    ("policy_init", "sft.epochs", "policy_init.epochs"),
    ("reward_init", "reward.margin", "reward_init.margin"),
    ("reward_init", "data.comparisons", "reward_init.comparisons"),
    ("reward", "reward.margin", "reward.margin"),
    ("ppo_ptx", "value_optimizer.warmup_steps", "ppo.value_optimizer."),
    ("ppo_ptx", "ppo.episodes", "ppo.episodes"),
  ],
)
def test_errors_of_stages_name_the_pipelines_flags(
  section, field, named, tmp_path
):
  def fail(config, directory):
    raise UserError("is bad", field=field, fix=f"leave out --{field}", code="x")

  config = presets.pipeline("tiny")
  pipeline = Pipeline(config, str(tmp_path), has_gold=True)
  stage = pipeline.stage_config(configs.PretrainExperiment, "")
  with pytest.raises(UserError) as caught:
    pipeline.run_stage("stage", "pretrain", stage, fail, section=section)
  error = caught.value
  assert error.field is not None and error.field.startswith(named)
  assert error.fix == f"leave out --{error.field}"
  value = config
  for name in error.field.split("."):
    value = getattr(value, name)  # the pipeline has such a field


@pytest.mark.parametrize("split", ["valid", "test"])
def test_public_comparisons_train_on_no_held_out_prompt(
  split, sources, tmp_path, monkeypatch
):
  """Both are split alone: a file's own splits may disagree."""
  path = pathlib.Path(sources["data.comparisons"])
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  held_out = next(line for line in lines if line["split"] == "valid")
  held_out["split"] = split
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  public = tmp_path / "public.jsonl"
  sources["reward_init.comparisons"] = str(public)

  def write(split):
    others = [
      {"prompt": f"red {i}", "completions": ["a", "b"], "ranks": [1, 2]}
      for i in range(40)
    ]
    same = held_out | {"split": split}
    public.write_text("".join(json.dumps(r) + "\n" for r in [*others, same]))

  write("train")
  error = refused(tmp_path / "run", sources)
  assert error.code == "held_out_prompt"
  assert error.field == "reward_init.comparisons"
  assert (error.file, error.line) == (str(public), 41)
  assert error.problem == f"its prompt is held out in {path}"

  monkeypatch.setattr(pretrain, "train", stop)
  write("valid")
  with pytest.raises(Reached):
    start(tmp_path / "run", **sources)
