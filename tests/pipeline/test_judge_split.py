"""Tests how rankings are divided between the reward model and the judge."""

import json
import pathlib

import pytest

from instructgpt_jax import configs
from instructgpt_jax.cli import flags
from instructgpt_jax.configs import presets
from instructgpt_jax.data import reading
from instructgpt_jax.data.reading import specs
from instructgpt_jax.data.records import Ranking, Turn
from instructgpt_jax.errors import UserError
from instructgpt_jax.pipeline import judge_split
from instructgpt_jax.training import inputs

ROLES = (judge_split.REWARD, judge_split.JUDGE)


def make_ranking(prompt, **more):
  turns = (Turn("user", prompt),)
  values = {"completions": ("a", "b"), "ranks": (1, 2)} | more
  return Ranking(turns=turns, **values)


def config_of(**values):
  return flags.replace(presets.pipeline("tiny"), values)


def divide(train, valid=()):
  pools = inputs.Splits(list(train), list(valid), [])
  parts = judge_split.divide(pools, configs.Data(), 0.4)
  return [parts[role] for role in ROLES]


def prompts_of(part):
  return {r.turns[-1].text for r in [*part.train, *part.valid]}


@pytest.mark.parametrize("system", [False, True])
def test_conversations_that_begin_alike_are_divided(
  tmp_path, monkeypatch, system
):
  records = []
  for i in range(60):
    turns = (Turn("user", "Hi!"),)
    if system:
      turns = (Turn("system", f"Text {i}"), *turns)
    else:
      turns += (Turn("assistant", "Hello."), Turn("user", f"Question {i}?"))
    records.append(
      Ranking(
        turns=turns,
        completions=("a", "b"),
        ranks=(1, 2),
        grades=(3, 0)[: 2 * i],
      )
    )
  pools = inputs.Splits(records[:50], records[50:], [])
  monkeypatch.setattr(inputs, "rankings", lambda data, tokenizer: pools)
  config = configs.PipelineExperiment()
  judge_split.write(config, str(tmp_path), None)
  prompts = []
  for role in ROLES:
    with open(judge_split.comparisons(config, str(tmp_path), role)) as file:
      lines = [json.loads(s) for s in file]
    prompts.append({json.dumps(line["prompt"]) for line in lines})
    # All but the first have grades.
    assert sum("grades" in line for line in lines) >= len(lines) - 1
    assert all(line.get("grades", [3, 0]) == [3, 0] for line in lines)
  assert min(map(len, prompts)) >= 5 and sum(map(len, prompts)) == 60
  assert not prompts[0] & prompts[1]


def test_a_prompt_of_several_users_is_in_one_part():
  shared = [
    make_ranking(f"question {i}", user_id=f"u{user}")
    for user in range(4)
    for i in range(20)
  ]
  reward, judge = divide(shared[::2], shared[1::2])
  assert len(prompts_of(reward)) >= 5 and len(prompts_of(judge)) >= 3
  assert not prompts_of(reward) & prompts_of(judge)
  sizes = [len(part.train) + len(part.valid) for part in (reward, judge)]
  assert sum(sizes) == len(shared)


def test_a_users_other_prompts_stay_together():
  rankings = [
    make_ranking(f"question {user} {i}", user_id=f"u{user}")
    for user in range(20)
    for i in range(3)
  ]
  both = make_ranking("the same question", user_id="u0")
  rankings += [both, make_ranking("the same question", user_id="u1")]
  parts = divide(rankings)
  users = [
    {r.user_id for r in part.train if r.turns != both.turns} for part in parts
  ]
  assert users[0] and users[1] and not users[0] & users[1]
  assert sorted(both.turns in [r.turns for r in p.train] for p in parts) == [
    False,
    True,
  ]


def test_test_rankings_are_in_neither_part():
  train = [make_ranking(f"question {i}") for i in range(20)]
  pools = inputs.Splits(train, [], [make_ranking("of the test split")])
  parts = judge_split.divide(pools, configs.Data(), 0.4)
  assert not any(part.test for part in parts.values())
  assert sum(len(part.train) for part in parts.values()) == 20


def write_rankings(path, name, count, **more):
  with open(path, "w", encoding="utf-8") as file:
    for i in range(count):
      line = {
        "prompt": f"{name} {i}",
        "completions": ["a", "b"],
        "ranks": [1, 2],
        "split": "train" if i % 4 else "valid",
      }
      file.write(json.dumps(line | more) + "\n")
  return str(path)


def test_weights_of_the_users_files_are_kept(tmp_path):
  first = write_rankings(tmp_path / "first.jsonl", "one", 40)
  second = write_rankings(tmp_path / "b,c.v2.jsonl", "two", 24)
  source = f'{first}:0.7,"{second}":0.3'
  config = config_of(**{"data.comparisons": source})
  directory = tmp_path / "a, b" / "rankings"
  judge_split.write(config, str(directory), None)
  prompts = set()
  for role in ROLES:
    written = judge_split.comparisons(config, str(directory), role)
    parts = specs.parse(written)
    assert [part.weight for part in parts] == [0.7, 0.3]
    names = [pathlib.Path(part.name).name for part in parts]
    assert names == [f"{role}_1_first.jsonl", f"{role}_2_b-c-v2.jsonl"]
    for part, name in zip(parts, ("one", "two"), strict=True):
      rankings, _ = reading.read_rankings(f'"{part.name}"')
      of_part = {r.turns[-1].text for r in rankings}
      assert of_part and all(text.startswith(name) for text in of_part)
      prompts |= of_part
  assert len(prompts) == 64


def check(tmp_path, *, has_limits=False, **values):
  config = config_of(**values)
  pools = inputs.without_limits("comparisons", config.data)
  judge_split.check(pools, config, has_limits=has_limits)


def test_a_labeler_may_have_all_rankings_in_one_part(tmp_path):
  path = write_rankings(tmp_path / "a.jsonl", "one", 60, labeler_id="l1")
  with open(path, "a", encoding="utf-8") as file:
    line = {"prompt": "x", "completions": ["a", "b"], "ranks": [1, 2]}
    file.write(json.dumps(line | {"labeler_id": "l2", "split": "train"}) + "\n")
  values = {"data.comparisons": path, "reward.leave_out": "l2"}
  check(tmp_path, **values)
  config = config_of(**values)
  judge_split.write(config, str(tmp_path), None)
  left_out = {
    role: judge_split.leave_out_known(
      config.reward.section,
      judge_split.comparisons(config, str(tmp_path), role),
    ).leave_out
    for role in ROLES
  }
  assert sorted(left_out.values()) == ["", "l2"]


@pytest.mark.parametrize(
  "count, values, code, field",
  [
    (60, {"reward.leave_out": "l1,l9"}, "unknown_labeler", "reward.leave_out"),
    (60, {"reward.leave_out": "l1"}, "no_rankings", "reward.leave_out"),
    (60, {"reward.margin": "grade"}, "no_grades", "reward.margin"),
    (60, {"reward.margin": "rank"}, "no_grades", "reward.margin"),
    (2, {}, "too_few_rankings", "data.comparisons"),
    (60, {"evaluation.judge_fraction": 1e-9}, "too_few_rankings",
     "data.comparisons"),
  ],
)  # fmt: skip
def test_rankings_that_no_stage_could_train_on_are_refused(
  tmp_path, count, values, code, field
):
  path = write_rankings(tmp_path / "a.jsonl", "one", count, labeler_id="l1")
  with pytest.raises(UserError) as caught:
    check(tmp_path, **{"data.comparisons": path}, **values)
  assert (caught.value.code, caught.value.field) == (code, field)


def test_a_weighted_file_needs_rankings_in_both_parts(tmp_path):
  first = write_rankings(tmp_path / "a.jsonl", "one", 60)
  second = write_rankings(tmp_path / "b.jsonl", "two", 2)
  with pytest.raises(UserError) as caught:
    check(tmp_path, **{"data.comparisons": f"{first}:1,{second}:1"})
  assert caught.value.code == "too_few_rankings"
  assert caught.value.file == second


def test_a_labeler_of_test_rankings_alone_is_unknown(tmp_path):
  path = write_rankings(tmp_path / "a.jsonl", "one", 60, labeler_id="l1")
  with open(path, "a", encoding="utf-8") as file:
    line = {"prompt": "x", "completions": ["a", "b"], "ranks": [1, 2]}
    file.write(json.dumps(line | {"labeler_id": "l2", "split": "test"}) + "\n")
  with pytest.raises(UserError) as caught:
    check(tmp_path, **{"data.comparisons": path, "reward.leave_out": "l2"})
  assert caught.value.code == "unknown_labeler"


def test_grades_are_no_ranks_that_are_apart(tmp_path):
  path = write_rankings(tmp_path / "a.jsonl", "one", 60, grades=[2, 1])
  with pytest.raises(UserError) as caught:
    check(tmp_path, **{"data.comparisons": path, "reward.margin": "rank"})
  assert (caught.value.code, caught.value.field) == (
    "no_grades", "reward.margin",
  )  # fmt: skip


def test_max_rankings_is_no_reason_where_limits_are_not_known(tmp_path):
  """Which rankings it takes depends on those that the limits drop."""
  path = write_rankings(tmp_path / "a.jsonl", "one", 60)
  with open(path, "a", encoding="utf-8") as file:
    for i in range(12):
      line = {"prompt": f"three {i}", "completions": ["a", "b", "c"]}
      line |= {"ranks": [1, 2, 3], "split": "train"}
      file.write(json.dumps(line) + "\n")
  check(
    tmp_path,
    **{
      "data.comparisons": path,
      "reward.margin": "rank",
      "reward.max_rankings": 1,
    },
  )


def test_grades_may_lack_where_limits_are_not_known(tmp_path):
  """A ranking without grades may exceed the limits, and is then left out."""
  path = write_rankings(tmp_path / "a.jsonl", "one", 60, grades=[2, 1])
  write_rankings(tmp_path / "b.jsonl", "two", 1)
  source = f"{path},{tmp_path / 'b.jsonl'}"
  values = {"data.comparisons": source, "reward.margin": "grade"}
  pathlib.Path(tmp_path / "b.jsonl").write_text(
    json.dumps(
      {"prompt": "x", "completions": ["a", "b"], "ranks": [1, 2],
       "split": "train"}
    )
  )  # fmt: skip
  check(tmp_path, **values)
  with pytest.raises(UserError) as caught:
    check(tmp_path, has_limits=True, **values)
  assert caught.value.code == "no_grades"
