"""Errors of stages that open an invalid Hugging Face directory."""

import json

import pytest

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.hub import __main__ as command
from instructgpt_jax.interop import directory, tensors
from instructgpt_jax.training import inheritance, stage_model
from tests.interop import ours
from tests.training import hub


@pytest.fixture
def made(tmp_path):
  return hub.make(tmp_path / "hf", "gpt2")


def change_json(path, change):
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


def test_a_tokenizer_of_another_model(made, tmp_path):
  ours.make(tmp_path / "small", vocab_size=7)
  for name, content in hub.tokenizer_files("gpt2").items():
    (tmp_path / "small" / name).write_bytes(content)
  with pytest.raises(UserError, match=r"tokenizer has ids .*, its model 7"):
    stage_model.open_stage(str(tmp_path / "small"))


def test_a_tokenizer_without_an_end(tmp_path):
  ours.make(tmp_path / "m", vocab_size=4)
  text = json.loads(ours.tokenizer_files()["tokenizer.json"])
  vocab = text["model"]["vocab"]
  vocab["c"] = vocab.pop("</s>")
  (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(text))
  with pytest.raises(UserError) as e:
    stage_model.open_stage(str(tmp_path / "m"))
  assert e.value.code == "special_token_unknown"
  names = ("generation_config.json", "config.json")
  assert e.value.file == str(tmp_path / "m" / names[0])
  for name in names:
    change_json(tmp_path / "m" / name, lambda c: c.pop("eos_token_id"))
  with pytest.raises(UserError) as e:
    stage_model.open_stage(str(tmp_path / "m"))
  assert e.value.code == "no_end_of_text"
  assert "tokenizer_config.json" in e.value.fix


def test_a_directory_without_a_tokenizer(tmp_path):
  ours.make(tmp_path / "m")
  with pytest.raises(UserError, match="no tokenizer"):
    stage_model.open_stage(str(tmp_path / "m"))


def test_the_other_kind_of_model(made):
  with pytest.raises(UserError, match="where a reward model is needed"):
    stage_model.open_stage(
      made, kind=stage_model.SCALAR, field="ppo.reward_model"
    )


def test_a_run_sets_its_precision_and_context(tmp_path):
  made = hub.make(tmp_path / "hf", "llama")
  flags = configs.Model(dtype="bfloat16", remat="full", scan_layers=True)
  for context, expected in ((16, 16), (2048, 24)):
    run = configs.SftExperiment(
      init_from=made,
      model=configs.Model(
        dtype=flags.dtype,
        remat=flags.remat,
        scan_layers=True,
        max_seq_len=context,
      ),
    )
    actual = inheritance.inherit_architecture(run).model
    assert (actual.dtype, actual.remat) == ("bfloat16", "full")
    assert actual.scan_layers and actual.max_seq_len == expected
    assert actual.num_kv_heads == 1 and actual.pos_emb == "rope"
    assert inheritance.inherit_architecture(
      inheritance.inherit_architecture(run)
    ) == inheritance.inherit_architecture(run)


def test_a_mesh_gets_a_vocabulary_that_it_divides(made):
  for size in (1, 2, 3, 7):
    run = configs.SftExperiment(mesh=configs.Mesh(tensor=size))
    stage = stage_model.open_stage(made, run=run)
    rows, needed = (
      stage.model_config.padded_vocab_size,
      stage.tokenizer.vocab_size,
    )
    assert rows % size == 0 and needed <= rows < needed + size


@pytest.mark.parametrize("what", ["import", "export"])
def test_the_command_writes_over_nothing(made, tmp_path, what, capsys):
  (tmp_path / "there").mkdir()
  arguments = [what, f"--from={made}", f"--to={tmp_path / 'there'}"]
  assert command.main(arguments) == 2
  assert "exists already" in capsys.readouterr().err
  assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize(
  "arguments, word",
  [
    (["import"], "--from"),
    (["convert", "--from=a", "--to=b"], "convert"),
    (["import", "--from=nowhere", "--to=b"], "no such directory"),
    (["export", "--from=a", "--to=b", "--file_size=big"], "big"),
    (["export", "--from=nowhere", "--to=b"], "no such directory"),
  ],
)
def test_user_errors_are_printed_without_a_traceback(
  arguments, word, capsys, monkeypatch
):
  assert command.main(arguments) == 2
  text = capsys.readouterr().err
  assert word in text and len(text.splitlines()) <= 3


def test_a_failed_import_leaves_no_files(made, tmp_path, capsys):
  path = tmp_path / "hf" / tensors.SINGLE_FILE
  whole = path.read_bytes()
  look = directory.inspect

  def inspect_and_cut(folder_path):
    actual = look(folder_path)
    path.write_bytes(whole[:-4])
    return actual

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(directory, "inspect", inspect_and_cut)
    status = command.main(["import", f"--from={made}", f"--to={tmp_path}/new"])
  assert status == 2
  assert "ends early" in capsys.readouterr().err
  assert {p.name for p in tmp_path.iterdir()} == {"hf"}


def test_other_sizes_and_types(made, tmp_path, capsys):
  assert command.main(["import", f"--from={made}", f"--to={tmp_path}/w"]) == 0
  arguments = ["--dtype=bfloat16", "--file_size=8KB"]
  done = command.main(
    ["export", f"--from={tmp_path}/w", f"--to={tmp_path}/out", *arguments]
  )
  assert done == 0
  assert "GPT2LMHeadModel" in capsys.readouterr().err
  source = directory.inspect(tmp_path / "out")
  assert {t.dtype for t in source.tensors.values()} == {"BF16"}
  assert len({t.file for t in source.tensors.values()}) > 1
