"""Prepared records are those that a run curates and encodes in memory."""

import dataclasses
import json
import random

import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.data import (
  batching,
  curated_source,
  data_flags,
  encoding,
  ranking_packing,
  ranking_source,
  tokenizers,
)
from instructgpt_jax.data.batch_source import BatchSpec
from instructgpt_jax.data.curation import token_limits
from instructgpt_jax.data.prepared import (
  command,
  layout,
  manifest,
  prepare_records,
  records,
  shards,
)
from instructgpt_jax.data.ranking_packing import Layout
from instructgpt_jax.data.records import SPLITS, replies
from instructgpt_jax.errors import UserError

WORDS = [f"{a}{b}{c}" for a in "bdgkl" for b in "aeiou" for c in "mnrst"]
NAMES = tuple(curated_source.KINDS)
LIMITS = {"max_prompt_tokens": 33, "max_response_tokens": 18}


def text(rng, most):
  return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def write_sources(directory, count=120, seed=0):
  """Writes sources that share prompts, and that curation has work with."""
  rng = random.Random(seed)
  prompts = [text(rng, 12) for _ in range(count)]
  lines = {name: [] for name in NAMES}
  for i, prompt in enumerate(prompts):
    user = {"user_id": f"u{i % 40}"} if i % 3 else {}
    held_out = {"split": "valid"} if i % 17 == 0 else {}
    k = rng.randint(2, 5)
    ranking = {
      "prompt": prompt,
      "completions": [text(rng, 8) for _ in range(k)],
      "ranks": [1, *rng.choices(range(2, k + 1), k=k - 1)],
      "labeler_id": f"l{i % 4}" if i % 5 else "",
    }
    lines["comparisons"].append(ranking | user | held_out)
    if i % 2:
      demonstration = {"prompt": prompt, "completion": text(rng, 8)}
      lines["demonstrations"].append(demonstration | user)
    lines["prompts"].append({"prompt": rng.choice(prompts[: i + 1])} | user)
  lines["comparisons"].append(lines["comparisons"][1])  # a duplicate
  paths = {}
  for name, of_source in lines.items():
    path = directory / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in of_source))
    paths[name] = str(path)
  return paths


@pytest.fixture(scope="module")
def tokenizer_path(once):
  rng = random.Random(1)
  texts = [text(rng, 60) for _ in range(300)]
  settings = configs.Tokenizer(vocab_size=330)
  return once(
    "tokenizer of prepared records",
    lambda path: tokenizers.train_tokenizer(texts, settings, path),
  )


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
  return tokenizers.load_tokenizer(tokenizer_path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
  return write_sources(tmp_path_factory.mktemp("sources"))


def prepare(directory, sources, tokenizer_path, *, shard_records=7, **changes):
  settings = {**LIMITS, **changes}
  preparation = prepare_records.RecordsPreparation(
    directory=str(directory),
    data=configs.Data(**sources, **settings),
    tokenizer_path=tokenizer_path,
    shard_records=shard_records,
  )
  return prepare_records.prepare(preparation, lambda line: None)


@pytest.fixture
def prepared(tmp_path, sources, tokenizer_path):
  prepare(tmp_path / "prepared", sources, tokenizer_path)
  return tmp_path / "prepared"


def data_of(directory, *names, **changes):
  sources = dict.fromkeys(names or NAMES, str(directory))
  return configs.Data(**sources, **{**LIMITS, **changes})


def in_memory(name, sources, tokenizer, **changes):
  data = configs.Data(**sources, **{**LIMITS, **changes})
  read = {
    key: curated_source.read(f"data.{key}", data, curated_source.KINDS[key])
    for key in sources
  }
  others = [source.records for key, source in read.items() if key != name]
  return curated_source.curate(read[name], others, data, tokenizer)


def opened(name, directory, tokenizer=None, **changes):
  return records.open_source(name, data_of(directory, **changes), tokenizer)


def tokens_of(part, tokenizer, data):
  """Returns (prompt, replies) of records that are encoded together."""
  prompts = encoding.encode_prompts([r.turns for r in part], tokenizer, data)
  texts = [t for r in part for t in replies(r)]
  ids = iter(encoding.encode_completions(texts, tokenizer, data))
  return [
    (prompt, [next(ids) for _ in replies(r)])
    for prompt, r in zip(prompts, part, strict=True)
  ]


@pytest.mark.parametrize("name", NAMES)
def test_records_and_splits_are_those_in_memory(
  name, prepared, sources, tokenizer
):
  expected = in_memory(name, sources, tokenizer)
  actual = opened(name, prepared, tokenizer)
  assert [*actual.parts] == [*SPLITS]
  for split in SPLITS:
    part = expected.parts[split]
    same = [dataclasses.replace(r, origin="") for r in part]
    assert list(actual.parts[split]) == same
    assert actual.parts[split][1:5] == same[1:5]
    pairs = tokens_of(part, tokenizer, data_of(prepared))
    counts = actual.parts[split].token_counts
    for i, (prompt, ids) in enumerate(pairs):
      tokens = actual.parts[split].tokens(i)
      np.testing.assert_array_equal(tokens.prompt, prompt)
      assert [r.tolist() for r in tokens.replies] == [r.tolist() for r in ids]
      assert tokens.ranks == getattr(part[i], "ranks", ())
      lengths = [len(prompt), *map(len, ids)]
      assert counts[i].tolist() == lengths + [-1] * (
        len(counts[i]) - len(ids) - 1
      )
  assert len(expected.parts["train"]) > 20 and expected.parts["valid"]
  assert [line.partition(": ")[2] for line in actual.lines] == expected.lines


def test_no_held_out_prompt_is_in_train(prepared):
  prompts = {
    split: {
      record.turns[-1].text.lower()
      for name in NAMES
      for record in opened(name, prepared).parts[split]
    }
    for split in SPLITS
  }
  assert prompts["train"] and prompts["valid"] and prompts["test"]
  assert not prompts["train"] & (prompts["valid"] | prompts["test"])
  assert not prompts["valid"] & prompts["test"]


def test_labelers_are_indices_of_their_names(prepared):
  result = manifest.read_records(prepared, "comparisons")
  names = result.labelers["comparisons"]
  assert sorted(names) == ["l0", "l1", "l2", "l3"]
  part = opened("comparisons", prepared).parts["train"]
  for record, index in zip(part, part.labelers, strict=True):
    assert (names[index] if index >= 0 else "") == record.labeler_id
  assert -1 in part.labelers


def assert_same_batches(actual, expected):
  for a, b in zip(actual, expected, strict=True):
    for name, value in vars(b).items():
      np.testing.assert_array_equal(vars(a)[name], value, name)


@pytest.mark.parametrize("shape", [(1, 4), (5, 4), (1, 2), (5, 1)])
def test_batches_of_rankings_are_those_in_memory(
  shape, prepared, sources, tokenizer
):
  expected = encoding.encode_rankings(
    in_memory("comparisons", sources, tokenizer).parts["train"],
    tokenizer,
    data_of(prepared),
  )
  part = opened("comparisons", prepared).parts["train"]
  actual = ranking_source.PreparedRankings(part)
  choose = dict(d_model=8, num_scores=lambda tokens, span: tokens**2)
  spec = BatchSpec(batch_size=4, seed=3, epochs=2)
  assert ranking_packing.choose_layout(
    actual, spec, **choose
  ) == ranking_packing.choose_layout(expected, spec, **choose)
  iterators = [
    ranking_packing.ranking_batches(r, spec, layout=Layout(*shape), pad_id=0)
    for r in (actual, expected)
  ]
  batches = [list(iterator) for iterator in iterators]
  assert_same_batches(*batches)
  # A run resumes at any position.
  iterators[0].set_state(iterators[0].get_state() | {"next_index": 5})
  assert_same_batches(iterators[0], batches[1][5:])


def test_each_process_reads_its_own_rankings(prepared):
  part = opened("comparisons", prepared).parts["train"]

  def batches(**shard):
    spec = BatchSpec(batch_size=4, seed=3, epochs=1, **shard)
    source = ranking_source.PreparedRankings(part)
    return list(
      ranking_packing.ranking_batches(
        source, spec, layout=Layout(1, 2), pad_id=0
      )
    )

  halves = [batches(shard_index=i, shard_count=2) for i in (0, 1)]
  for whole, first, second in zip(batches(), *halves, strict=True):
    joined = np.concatenate([first.tokens, second.tokens])
    np.testing.assert_array_equal(joined, whole.tokens)


def test_batches_of_prompts_are_those_in_memory(prepared, sources, tokenizer):
  expected = encoding.encode_prompts(
    [r.turns for r in in_memory("prompts", sources, tokenizer).parts["train"]],
    tokenizer,
    data_of(prepared),
  )
  part = opened("prompts", prepared).parts["train"]

  class Ids:
    __len__ = part.__len__

    def __getitem__(self, index):
      return part.tokens(index).prompt

  spec = BatchSpec(batch_size=4, seed=3, epochs=2)
  assert_same_batches(
    *(
      list(batching.prompt_batches(ids, spec, width=33, pad_id=0))
      for ids in (Ids(), expected)
    )
  )


def test_no_record_is_read_before_it_is_used(prepared, monkeypatch):
  read = []
  original = shards.Shards.read
  monkeypatch.setattr(
    shards.Shards,
    "read",
    lambda self, *place: read.append(place) or original(self, *place),
  )
  part = opened("comparisons", prepared).parts["train"]
  source = ranking_source.PreparedRankings(part)
  batches = ranking_packing.ranking_batches(
    source,
    BatchSpec(batch_size=4, epochs=1),
    layout=Layout(1, 4),
    pad_id=0,
  )
  assert not read
  next(batches)
  assert len(read) == 4


def test_some_rankings_are_numbered_anew(prepared):
  part = opened("comparisons", prepared).parts["train"]
  two = np.flatnonzero((part.token_counts >= 0).sum(axis=1) == 3)
  selected = ranking_source.PreparedRankings(part, two)
  assert selected.token_counts.shape == (len(two), 3)
  assert selected[1].ranks == part[int(two[1])].ranks


def test_encoding_in_chunks_changes_nothing(sources, tokenizer, monkeypatch):
  whole = in_memory("comparisons", sources, tokenizer)
  monkeypatch.setattr(token_limits, "_CHUNK", 3)
  assert in_memory("comparisons", sources, tokenizer) == whole


# The command.


def run(*arguments):
  return command.main([str(a) for a in arguments])


def flags_of(sources):
  return [f"--data.{name}={path}" for name, path in sources.items()]


def test_the_command_prepares_and_verifies(
  tmp_path, sources, tokenizer_path, tokenizer, capsys
):
  to = tmp_path / "out"
  arguments = [
    f"--to={to}",
    f"--tokenizer={tokenizer_path}",
    *flags_of(sources),
  ]
  arguments += [f"--{name}={value}" for name, value in LIMITS.items()]
  assert run(*arguments) == 0
  output = capsys.readouterr()
  assert f"--data.comparisons={to}" in output.out
  assert "comparisons.jsonl [data.comparisons]: " in output.err
  before = (to / layout.MANIFEST).stat().st_mtime_ns
  assert run(*arguments) == 0  # It is prepared already.
  assert (to / layout.MANIFEST).stat().st_mtime_ns == before
  assert run(f"--to={to}", "--verify") == 0
  part = opened("prompts", to, tokenizer).parts["train"]
  expected = in_memory("prompts", sources, tokenizer).parts["train"]
  assert [r.turns for r in part] == [r.turns for r in expected]


def test_an_interrupted_preparation_is_repeated(
  tmp_path, sources, tokenizer_path, monkeypatch
):
  written = []

  def fail(directory, name, *args, **kwargs):
    written.append(name)
    if len(written) > 5:
      raise KeyboardInterrupt
    return original(directory, name, *args, **kwargs)

  original = shards.write
  with monkeypatch.context() as patch:
    patch.setattr(shards, "write", fail)
    with pytest.raises(KeyboardInterrupt):
      prepare(tmp_path / "a", sources, tokenizer_path)
  assert error_of(lambda: opened("prompts", tmp_path / "a")) == (
    "unfinished_preparation"
  )
  assert prepare(tmp_path / "a", sources, tokenizer_path) == prepare(
    tmp_path / "b", sources, tokenizer_path
  )
  assert not list((tmp_path / "a").rglob("*.next"))


# Errors.


def error_of(body):
  with pytest.raises(UserError) as caught:
    body()
  assert caught.value.fix
  return caught.value.code


def test_damage_is_found(prepared, tokenizer):
  directory = prepared / layout.RECORDS
  shard = next(directory.glob("comparisons-train-00000*"))
  content = shard.read_bytes()
  shard.write_bytes(content[:-1000])
  with pytest.raises(UserError) as caught:
    opened("comparisons", prepared)
  assert caught.value.code == "damaged_shard"
  assert caught.value.file == str(shard)
  # Of the same size, it is found when it is read, and by its checksum.
  place = content.index(b'"turns"')
  shard.write_bytes(content[:place] + b"X" + content[place + 1 :])
  part = opened("comparisons", prepared).parts["train"]
  assert error_of(lambda: list(part)) == "damaged_shard"
  assert error_of(lambda: manifest.verify(prepared)) == "damaged_shard"
  shard.unlink()
  assert error_of(lambda: opened("prompts", prepared)) == "damaged_shard"


def test_a_damaged_table_is_found(prepared):
  table = prepared / layout.table_name("comparisons", "train")
  content = bytearray(table.read_bytes())
  content[-1] ^= 1
  table.write_bytes(content)
  part = opened("comparisons", prepared).parts["train"]
  assert error_of(lambda: part.token_counts) == "damaged_shard"


@pytest.mark.parametrize(
  ("changes", "name"),
  [
    ({"max_prompt_tokens": 32}, "max_prompt_tokens"),
    ({"max_response_tokens": 17}, "max_response_tokens"),
    ({"user_tag": "User:"}, "user_tag"),
    ({"turn_separator": "\\n"}, "turn_separator"),
    ({"valid_fraction": 0.3, "explicit": "valid_fraction"}, "valid_fraction"),
    (
      {"filter_personal": False, "explicit": "filter_personal"},
      "filter_personal",
    ),
  ],
)
def test_other_settings_are_refused(changes, name, prepared, tokenizer):
  with pytest.raises(UserError) as caught:
    opened("comparisons", prepared, tokenizer, **changes)
  error = caught.value
  assert (error.code, error.field) == ("other_settings", "data.comparisons")
  assert f"data.{name}" in error.problem and f"--data.{name}=" in error.fix


def test_a_preset_s_curation_is_not_the_user_s(prepared, tokenizer):
  assert opened("prompts", prepared, tokenizer, valid_fraction=0.3)


def test_another_tokenizer_is_refused(prepared):
  other = tokenizers.train_tokenizer(
    ["bam bem", "bim bom"] * 20, configs.Tokenizer(vocab_size=300)
  )
  with pytest.raises(UserError) as caught:
    opened("prompts", prepared, other)
  assert caught.value.code == "other_tokenizer"


def test_sources_that_were_not_prepared_together_are_refused(
  prepared, sources, tokenizer_path, tmp_path
):
  other = tmp_path / "other"
  prepare(other, {"prompts": sources["prompts"]}, tokenizer_path)
  several = f"{sources['prompts']},{sources['comparisons']}"
  for spec in (other, sources["prompts"], several):
    data = dataclasses.replace(data_of(prepared), prompts=str(spec))
    for name in ("comparisons", "prompts"):
      with pytest.raises(UserError) as caught:
        records.open_source(name, data, None)
      assert caught.value.code == "mixed_preparation"
      assert caught.value.field == "data.prompts"
  # Another name of the directory is none of another one.
  (tmp_path / "link").symlink_to(prepared)
  linked = dataclasses.replace(data_of(prepared), prompts=f"{tmp_path}/link")
  assert records.open_source("prompts", linked, None).parts["train"]
  # Some of those that were prepared together are enough.
  alone = data_of(prepared, "prompts")
  assert records.open_source("prompts", alone, None).parts["train"]
  missing = data_of(other, "prompts", "comparisons")
  assert error_of(
    lambda: records.open_source("comparisons", missing, None)
  ) == ("other_kind")
  assert error_of(lambda: records.open_source("comparisons", alone, None)) == (
    "missing_source"
  )


def test_documents_and_records_are_not_exchanged(
  prepared, tokenizer_path, tmp_path
):
  (tmp_path / "a.jsonl").write_text('{"text": "bam bem"}\n' * 9)
  documents = tmp_path / "documents"
  assert not run(
    tmp_path / "a.jsonl",
    f"--to={documents}",
    "--length=8",
    f"--tokenizer={tokenizer_path}",
    "--processes=1",
  )
  assert error_of(lambda: opened("prompts", documents)) == "other_kind"
  assert error_of(lambda: manifest.read(prepared)) == "other_kind"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["{paths}", "--length=8"], "length"),
    (["a.jsonl", "{paths}"], "PATH"),
    (["a.jsonl", "--length=8", "--max_prompt_tokens=3"], "not for documents"),
    (["--data.prompts={prompts}:0.5,{comparisons}:0.5"], "has a weight"),
    (["--data.prompts=/nowhere.jsonl"], "nowhere"),
    ([], "no data are given"),
  ],
)
def test_arguments_that_do_not_fit(
  arguments, message, tmp_path, sources, tokenizer_path, capsys
):
  paths = [f"--data.prompts={sources['prompts']}"]
  flags = []
  for argument in arguments:
    flags += paths if argument == "{paths}" else [argument.format(**sources)]
  to = tmp_path / "out"
  assert run(*flags, f"--to={to}", f"--tokenizer={tokenizer_path}") == 2
  error = capsys.readouterr().err
  assert message in error and "fix: " in error
  assert not to.exists()


def test_a_tokenizer_is_needed(sources, tmp_path, capsys):
  assert run(f"--to={tmp_path / 'out'}", *flags_of(sources)) == 2
  assert "tokenizer" in capsys.readouterr().err


def test_a_source_that_loses_most_is_refused(sources, tmp_path, tokenizer_path):
  def body():
    prepare(tmp_path / "out", sources, tokenizer_path, max_prompt_tokens=6)

  assert error_of(body) == "most_dropped"


def test_all_limits_of_records_are_flags():
  known = {*configs.options(configs.Data)}
  named = {*command._RECORD_FIELDS, *command._DOCUMENT_FIELDS}
  others = {*data_flags._SOURCES, "explicit"}
  assert named | others == known
