"""Notes, warnings and errors of stages about their sources."""

import json

import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import reading
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.training import documents, inputs


class Words(Tokenizer):
  def __init__(self):
    super().__init__(3, pad_id=0, eos_id=1)

  def encode_batch(self, texts):
    return [[hash(w) % 999 + 2 for w in t.split()] for t in texts]


@pytest.fixture
def write(tmp_path):
  def write(records, name="x"):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)

  return write


def prompts(count, start=0, **fields):
  return [{"prompt": f"q{i}", **fields} for i in range(start, start + count)]


def demonstrations(count, start=0, words=1, **fields):
  return [
    {"prompt": f"q{i} " + "w " * words, "completion": f"a{i}", **fields}
    for i in range(start, start + count)
  ]


# Counts, warnings and errors.


def test_a_tenth_is_a_warning_with_an_example_and_a_flag(write, capsys):
  path = write(demonstrations(88) + demonstrations(12, 88, words=50))
  data = configs.Data(demonstrations=path, max_prompt_tokens=20)
  inputs.demonstrations(data, Words())
  err = capsys.readouterr().err
  assert "12 dropped (12 prompts over the token limit)" in err
  (warning,) = [x for x in err.splitlines() if x.startswith("warning: ")]
  assert "data.demonstrations" in warning and "12 of 100" in warning
  assert f"{path}:89" in warning and "q88 w w" in warning
  assert "--data.max_prompt_tokens" in warning


def test_less_than_a_tenth_is_counted(write, capsys):
  path = write(demonstrations(95) + demonstrations(5, 95, words=50))
  data = configs.Data(demonstrations=path, max_prompt_tokens=20)
  inputs.demonstrations(data, Words())
  err = capsys.readouterr().err
  assert "5 dropped (5 prompts" in err and "warning" not in err


CAUSES = {
  "max_prompt_tokens": (
    demonstrations(9) + demonstrations(11, 9, words=50),
    {"max_prompt_tokens": 20},
  ),
  "filter_personal": (
    demonstrations(9)
    + [{"prompt": f"Mail a{i}@b.org", "completion": "x", "split": "train"}
       for i in range(11)],
    {"filter_personal": True},
  ),
  "max_prompts_per_user": (
    demonstrations(9)
    + [{"prompt": f"p{i}", "completion": "x", "user_id": f"u{i % 2}"}
       for i in range(14)],
    {"max_prompts_per_user": 1},
  ),
}  # fmt: skip


@pytest.mark.parametrize("flag", CAUSES)
def test_most_of_a_source_is_an_error_unless_its_flag_is_set(
  flag, write, capsys
):
  records, limit = CAUSES[flag]
  data = {"demonstrations": write(records), **limit}
  with pytest.raises(UserError) as e:
    inputs.demonstrations(configs.Data(**data), Words())
  assert e.value.code == "most_dropped"
  assert e.value.field == "data.demonstrations"
  assert e.value.file == data["demonstrations"]
  assert e.value.line is not None and e.value.line >= 10
  assert f"--data.{flag}" in e.value.fix
  assert inputs.demonstrations(configs.Data(**data, explicit=flag), Words())
  assert "warning" in capsys.readouterr().err
  # A flag that is not the largest cause's does not help.
  with pytest.raises(UserError):
    inputs.demonstrations(configs.Data(**data, explicit="seed"), Words())
  assert inputs.demonstrations(configs.Data(**data, max_dropped=0.9), Words())


def test_skips_while_reading_count(write):
  path = write([
    {"prompt": f"q{i}", "completions": ["a", "b"],
     "ranks": [1, 1] if i < 12 else [1, 2]}
    for i in range(20)
  ])  # fmt: skip
  with pytest.raises(UserError) as e:
    inputs.rankings(configs.Data(comparisons=path), Words())
  assert e.value.code == "most_dropped" and e.value.line == 1
  assert e.value.file == path and "--data.max_dropped" in e.value.fix
  data = configs.Data(comparisons=path, max_dropped=0.6)
  assert sum(map(len, inputs.rankings(data, Words()))) == 8


def test_the_fix_is_that_of_the_largest_cause(write):
  records = demonstrations(5) + demonstrations(12, 5, words=50)
  records += [
    {"prompt": f"Mail a{i}@b.org", "completion": "x", "split": "train"}
    for i in range(8)
  ]
  data = configs.Data(
    demonstrations=write(records), max_prompt_tokens=20,
    explicit="filter_personal",
  )  # fmt: skip
  with pytest.raises(UserError) as e:
    inputs.demonstrations(data, Words())
  assert "--data.max_prompt_tokens" in e.value.fix
  assert "53 tokens" in e.value.fix, "of the longest prompt, tags included"


def test_a_source_is_one_line_with_the_largest_cause_first(write, capsys):
  records = demonstrations(1000, split="train")
  records += demonstrations(90, 2000, split="valid")
  for record in records[:12]:
    record["completion"] = "word " * 20
  records += demonstrations(8, 1000, words=50, split="train")
  records += records[20:50]
  path = write(records, "answers")
  data = configs.Data(
    demonstrations=path, max_prompt_tokens=20, max_response_tokens=8
  )
  splits = inputs.demonstrations(data, Words())
  err = capsys.readouterr().err
  assert err.splitlines() == [
    "answers.jsonl [data.demonstrations]: 1,128 read, 1,090 kept (1,000 train,"
    " 90 valid), 38 dropped (30 duplicate records, 8 prompts over the token"
    " limit), 12 of 1,090 responses cut at 8 tokens"
  ]
  assert [len(part) for part in splits] == [1000, 90, 0]


def test_a_source_of_many_files_is_one_line(write, capsys, tmp_path):
  for i in range(5):
    write(prompts(10, 10 * i, split="train"), f"part{i}")
  inputs.prompts(configs.Data(prompts=str(tmp_path)), Words())
  assert capsys.readouterr().err.splitlines() == [
    f"{tmp_path} (5 files) [data.prompts]: 50 read, 50 kept (50 train, no"
    " validation records)"
  ]


def test_a_long_document_is_kept_as_parts(write, capsys):
  book = "\n\n".join(f"paragraph {i} " + "w " * 500 for i in range(60))
  path = write([{"text": book}, {"text": "short", "split": "valid"}])
  splits = inputs.documents(configs.Data(pretraining=path))
  used = sum(map(len, splits))
  assert used > 2
  counts = ", ".join(f"{len(v)} {k}" for k, v in splits._asdict().items() if v)
  assert capsys.readouterr().err.splitlines() == [
    f"x.jsonl [data.pretraining]: 2 read, 2 kept as {used} parts ({counts})"
  ]


def test_skipped_values_are_among_the_dropped(write, capsys):
  path = write([
    {"prompt": f"q{i}", "completions": ["a", "b"],
     "ranks": [1, 1] if i < 3 else [1, 2], "split": "train"}
    for i in range(20)
  ])  # fmt: skip
  inputs.rankings(configs.Data(comparisons=path), Words())
  line, *warnings = capsys.readouterr().err.splitlines()
  assert line == (
    "x.jsonl [data.comparisons]: 20 read, 17 kept (17 train, no validation"
    " records), 3 dropped (3 rankings with only ties)"
  )
  assert len(warnings) == 1


def test_repeated_prompts_are_counted_but_no_error(write, capsys):
  path = write(prompts(10) * 9)
  splits = inputs.prompts(configs.Data(prompts=path), Words())
  assert sum(map(len, splits)) == 10
  assert "80 dropped (80 repeated prompts)" in capsys.readouterr().err


def test_cut_replies_are_shown_and_warned_of(write, capsys):
  records = demonstrations(30)
  for record in records[:4]:
    record["completion"] = "word " * 20
  data = configs.Data(demonstrations=write(records), max_response_tokens=8)
  inputs.demonstrations(data, Words())
  err = capsys.readouterr().err
  assert "4 of 30 responses cut at 8 tokens" in err
  (warning,) = [x for x in err.splitlines() if x.startswith("warning: ")]
  assert "4 of 30" in warning and "x.jsonl:1 " in warning
  assert "--data.max_response_tokens" in warning


def test_rankings_that_the_cut_makes_equal_are_refused(write):
  records = [
    {"prompt": f"q{i}", "completions": ["w " * 30 + "a", "w " * 30 + "b"],
     "ranks": [1, 2]}
    for i in range(20)
  ]  # fmt: skip
  data = configs.Data(comparisons=write(records), max_response_tokens=8)
  with pytest.raises(UserError) as e:
    inputs.rankings(data, Words())
  assert e.value.code == "most_dropped"
  assert "--data.max_response_tokens" in e.value.fix


def test_a_source_without_validation_records_says_so(write, capsys):
  path = write(demonstrations(30))
  inputs.demonstrations(
    configs.Data(demonstrations=path, valid_fraction=0), Words()
  )
  assert "no validation records" in capsys.readouterr().err
  inputs.demonstrations(configs.Data(demonstrations=path), Words())
  assert "no validation records" not in capsys.readouterr().err


def test_a_constant_user_is_warned_of(write, capsys):
  path = write(demonstrations(300, user_id="anonymous"))
  splits = inputs.demonstrations(configs.Data(demonstrations=path), Words())
  assert all(len(part) > 10 for part in splits)
  err = capsys.readouterr().err
  assert "warning: data.demonstrations: 300 of 300" in err
  assert "'anonymous'" in err


# Splits over all sources.


def test_every_source_of_the_run_decides_splits(write, capsys):
  answered = [
    {"prompt": f"q{i}", "completion": "x", "user_id": f"u{i % 60}"}
    for i in range(600)
  ]
  data = configs.Data(
    demonstrations=write(answered, "d"), prompts=write(prompts(600), "p")
  )
  train = {d.turns for d in inputs.demonstrations(data, Words()).train}
  restored = inputs.prompts(data, Words())
  assert len(restored.test) > 20 and len(train) > 300
  assert not train & {p.turns for p in (*restored.test, *restored.valid)}
  assert "held out elsewhere" not in capsys.readouterr().err


def test_training_records_of_held_out_prompts_are_counted(write, capsys):
  data = configs.Data(
    demonstrations=write(demonstrations(100, words=0, split="train"), "d"),
    prompts=write(prompts(30, split="test") + prompts(9, 200), "p"),
  )
  assert len(inputs.demonstrations(data, Words()).train) == 70
  err = capsys.readouterr().err
  assert "30 dropped (30 records whose prompt is held out elsewhere)" in err
  assert "warning: data.demonstrations: 30 of 100" in err


# Evaluations.


def evaluation(path, tokenizer=None, seed=0, **section):
  data = {"prompts": path} if isinstance(path, str) else path
  return inputs.evaluation_prompts(
    configs.Data(**data), tokenizer, configs.Evaluation(**section), seed
  )


@pytest.mark.parametrize("split", ["train", "valid"])
def test_prompts_that_are_not_held_out_are_not_evaluated_on(split, write):
  path = write(prompts(20, split="train") + prompts(20, 20, split=split))
  with pytest.raises(UserError) as e:
    evaluation(path)
  assert e.value.code == "no_evaluation_prompts"
  assert e.value.field == "data.prompts"
  names_flag = "--evaluation.split=valid" in e.value.fix
  assert names_flag == (split == "valid")
  drawn = evaluation(path, split=split).measured
  assert {p.split for p in drawn} == {split}


def test_the_flag_of_the_share_is_named(write):
  data = {"prompts": write(prompts(50)), "test_fraction": 0.0}
  with pytest.raises(UserError) as e:
    evaluation(data)
  assert "--data.test_fraction" in e.value.fix


def test_prompts_are_drawn_by_seed(write):
  path = write(prompts(60, split="test") + prompts(20, 60, split="train"))

  def texts(seed, count=20):
    actual = evaluation(path, seed=seed, prompts=count).measured
    return [p.turns[0].text for p in actual]

  first = [f"q{i}" for i in range(20)]
  assert texts(0) == texts(0) != texts(1)
  assert sorted(texts(0)) != sorted(first) != sorted(texts(1))
  assert len(set(texts(0))) == 20
  # More prompts are a draw with more at its end.
  assert texts(0, 40)[:20] == texts(0)
  assert sorted(texts(0, 99)) == sorted(f"q{i}" for i in range(60))


def test_a_prefix_is_never_chosen_on_measured_prompts(write):
  for extra in (prompts(20, 60, split="valid"), prompts(0)):
    path = write(
      prompts(40, split="test") + prompts(20, 40, split="train") + extra
    )
    for split in ("test", "train"):
      if split == "train" and not extra:
        continue
      drawn = evaluation(path, split=split)
      measured = {p.turns for p in drawn.measured}
      assert drawn.choosing and not measured & {p.turns for p in drawn.choosing}


def test_documents_that_are_trained_on_are_not_evaluated_on(write):
  path = write([{"text": f"t{i}", "split": "train"} for i in range(9)])
  trained = documents.open_documents(configs.Data(pretraining=path))
  with pytest.raises(UserError) as e:
    documents.held_out_split(trained, "test")
  assert e.value.code == "no_evaluation_documents"
  assert documents.held_out_split(trained, "train") == "train"
  mixed = write(
    [{"text": f"t{i}", "split": "train" if i else "valid"} for i in range(9)]
  )
  partly = documents.open_documents(configs.Data(pretraining=mixed))
  assert documents.held_out_split(partly, "test") == "valid"
  assert partly.counts["valid"] == 1


def test_a_pipeline_refuses_sources_that_it_could_not_evaluate(write):
  data = configs.Data(
    prompts=write(prompts(20, split="train"), "p"),
    pretraining=write([{"text": f"t{i}"} for i in range(99)], "t"),
  )
  with pytest.raises(UserError) as e:
    inputs.require_evaluation(data, configs.Evaluation())
  assert e.value.code == "no_evaluation_prompts"
  inputs.require_evaluation(data, configs.Evaluation(split="train"))


def test_loss_on_all_turns_is_a_setting(tmp_path):
  messages = [
    {"role": "assistant" if i % 2 else "user", "content": f"{word} {word}"}
    for i, word in enumerate("one two three four five six".split())
  ]
  path = tmp_path / "talk.jsonl"
  path.write_text(json.dumps({"messages": messages}) + "\n")
  records, _ = reading.read_demonstrations(str(path))
  weights = {}
  for turns in ("last", "all"):
    rows = inputs.demonstration_rows(
      records,
      Words(),
      configs.Data(),
      64,
      section=configs.Sft(loss_turns=turns),
    )
    weights[turns] = rows["weights"].sum()
  # Each reply has two words, and the last one an end.
  assert weights == {"last": 3, "all": 7}
  assert configs.Sft().loss_turns == "last"
