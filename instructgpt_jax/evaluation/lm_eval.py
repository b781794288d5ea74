"""Runs lm-evaluation-harness on the models of this package.

lm-eval finds only its own models. This command adds `instructgpt_jax` to them,
and is lm-eval otherwise:

  python -m instructgpt_jax.evaluation.lm_eval run --model instructgpt_jax \\
    --model_args checkpoint=runs/demo/ppo --tasks hellaswag,lambada_openai

With --processes.count=N, --processes.index=I and --processes.coordinator=
HOST:PORT, several processes share the requests.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import os
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import jax

from instructgpt_jax import configs
from instructgpt_jax.cli import launch, process_settings
from instructgpt_jax.cli.parser import CommandParser
from instructgpt_jax.distributed import processes
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.language_model import TextModel, check_range
from instructgpt_jax.evaluation.lm_eval_settings import (
  GenerationSettings,
  read_batch_size,
  read_generation_settings,
)
from instructgpt_jax.runs.progress import log_line


def _harness_class() -> Any:
  """Returns the class of the harness's models; object without the harness."""
  try:
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
  except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "lm_eval":
      raise
    return object  # `require_library` says so where it is needed
  return LM


_Base = _harness_class()
NAME = "instructgpt_jax"  # of the model
_DEFAULT_DEVICE = "cuda:0"


class Model(_Base):
  """The language model of a checkpoint, as lm-eval's evaluator calls it.

  In a run of several processes each has all requests and gets all results, so
  lm-eval sees one process, as it does of models behind a server.
  """

  def __init__(
    self,
    checkpoint: str = "",
    *,
    batch_size: int | str = "auto",
    max_length: int | None = None,
    max_gen_toks: int = 256,
    dtype: str = "",
    seed: int = 0,
    **unknown: Any,
  ):
    """Loads a model.

    Args:
      checkpoint: workdir of a stage, a Hugging Face directory or a GGUF file.
      batch_size: rows of a batch; "auto" chooses for the devices.
      max_length: most tokens that are read at a time; None is the model's
        limit.
      max_gen_toks: longest continuation where a task has no limit.
      dtype: type of activations; "" is the checkpoint's.
      seed: seed of sampled continuations.
      **unknown: what the harness passes further; only None is accepted.

    Raises:
      UserError: an argument is unknown or invalid, lm-eval is not installed, or
        there is no language model.
    """
    require_library()
    super().__init__()
    for name, value in unknown.items():
      # Without --device, lm-eval's command line still gives its default.
      if value is not None and (name, value) != ("device", _DEFAULT_DEVICE):
        raise UserError(
          "is no argument of this model",
          field=f"model_args {name}",
          fix=_ARGUMENTS.get(name, f"give {', '.join(_ARGUMENTS[''])}"),
          code="unknown_model_arg",
        )
    if not checkpoint:
      raise UserError(
        "is missing",
        field="model_args checkpoint",
        fix="write checkpoint=DIR",
        code="no_checkpoint",
      )
    check_range("max_gen_toks", max_gen_toks, 1, None)
    check_range("seed", seed, 0, None)
    self.batch_size = read_batch_size(batch_size)
    self.max_gen_toks, self._seed = max_gen_toks, seed
    self._dropped_system = False
    self._path = str(checkpoint)
    self.model = TextModel(
      self._path,
      batch_size=self.batch_size,
      context=max_length,
      dtype=dtype,
    )

  @property
  def max_length(self) -> int:
    """Returns the most tokens that are read at a time."""
    return self.model.context

  @property
  def eot_token_id(self) -> int:
    """Returns the tokenizer's end-of-text."""
    return self.model.tokenizer.document_end_id

  @property
  def prefix_token_id(self) -> int:
    """Returns the context of texts without one."""
    return self.model.prefix_id

  @property
  def tokenizer_name(self) -> str:
    """Returns a name of the tokenizer and its template, for request caches."""
    checksum = 0
    for name, content in sorted(self.model.tokenizer.files.items()):
      checksum = zlib.crc32(name.encode() + content, checksum)
    return f"{NAME}-{checksum:08x}"

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None
  ) -> list[int]:
    """Encodes a text, with BOS as the tokenizer says."""
    return self.model.encode(string, begin=add_special_tokens is not False)

  def tok_decode(self, tokens: Sequence[int]) -> str:
    """Decodes token ids."""
    return self.model.decode(tokens)

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    """Returns the text of the chat template; None without one.

    Raises:
      UserError: the tokenizer has none, or a name is given.
    """
    if not chat_template:
      return None
    if isinstance(chat_template, str) and chat_template != "default":
      raise UserError(
        f"there is no choice of chat templates, such as {chat_template!r}",
        field="--apply_chat_template",
        fix="give the flag without a name: it applies the tokenizer's template",
        code="named_chat_template",
      )
    template = self.model.tokenizer.template
    return "" if template is None else template.text

  def apply_chat_template(
    self,
    chat_history: list[dict[str, str]],
    add_generation_prompt: bool = True,
  ) -> str:
    """Writes a conversation; a system turn that is refused is left out.

    Raises:
      UserError: the model has no template, or it refuses the conversation.
    """
    try:
      return self.model.chat(chat_history, add_generation_prompt)
    except UserError as error:
      rest = [turn for turn in chat_history if turn["role"] != "system"]
      if error.code != "template_refuses" or len(rest) == len(chat_history):
        raise
      if not self._dropped_system:
        self._dropped_system = True
        log_line("the chat template refuses system turns, which are left out")
      return self.model.chat(rest, add_generation_prompt)

  def loglikelihood(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """Returns (log-likelihood, is greedy) of continuations of contexts."""
    del disable_tqdm
    pairs = [request.args for request in requests]
    results = [
      (result.total, result.is_greedy)
      for result in self.model.log_likelihoods(pairs)
    ]
    return self._cached("loglikelihood", pairs, results)

  def loglikelihood_rolling(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[float]:
    """Returns the log-likelihood of whole texts."""
    del disable_tqdm
    arguments = [request.args for request in requests]
    scores = self.model.rolling_log_likelihoods(
      [text for (text,) in arguments], score_begin=True
    )
    return self._cached(
      "loglikelihood_rolling", arguments, [score.total for score in scores]
    )

  def generate_until(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[str]:
    """Returns continuations of contexts.

    Raises:
      UserError: a setting of a request is unknown or invalid.
    """
    del disable_tqdm
    arguments = [request.args for request in requests]
    by_settings: dict[GenerationSettings, list[int]] = {}
    for index, (_, settings) in enumerate(arguments):
      key = read_generation_settings(settings, self.max_gen_toks)
      by_settings.setdefault(key, []).append(index)
    texts = [""] * len(arguments)
    for settings, indices in by_settings.items():
      answers = self.model.generate(
        [arguments[index][0] for index in indices],
        **settings._asdict(),
        seed=self._seed,
      )
      for index, text in zip(indices, answers, strict=True):
        texts[index] = text
    return self._cached("generate_until", arguments, texts)

  def get_model_info(self) -> dict[str, Any]:
    """Returns what results say of the model."""
    config = self.model.config
    return {
      "model_num_parameters": self.model.num_params,
      "model_dtype": config.dtype,
      "checkpoint": self._path,
    }

  def _cached(
    self, kind: str, arguments: Sequence[Any], results: list[Any]
  ) -> list[Any]:
    """Hands results to the harness's cache, and returns them."""
    for request, result in zip(arguments, results, strict=True):
      self.cache_hook.add_partial(kind, request, result)
    return results


_ARGUMENTS: dict[str, Any] = {
  "": (
    "checkpoint",
    "batch_size",
    "max_length",
    "max_gen_toks",
    "dtype",
    "seed",
  ),
  "pretrained": "write checkpoint=DIR",
  "device": "leave it out: JAX_PLATFORMS in the environment names devices",
  "max_batch_size": "leave it out: batch_size=auto chooses the rows",
}


def require_library() -> None:
  """Refuses to go on without lm-eval.

  Raises:
    UserError: it is not installed.
  """
  if _Base is object:
    raise UserError(
      "needs lm-evaluation-harness, which is not installed",
      field="lm_eval",
      fix="pip install lm_eval (extra 'lm-eval')",
      code="missing_library",
    )


def register() -> None:
  """Adds the model to lm-eval's, under the name `NAME`."""
  require_library()
  # lm-eval registers its own models only where there are none yet.
  import lm_eval.models  # noqa: F401 # pyright: ignore[reportMissingImports]
  from lm_eval.api.registry import (  # pyright: ignore[reportMissingImports]
    model_registry,
  )

  if NAME not in model_registry:
    model_registry.register(
      NAME, target="instructgpt_jax.evaluation.lm_eval:Model"
    )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs lm-eval's command line; returns the exit status."""
  argv = sys.argv[1:] if argv is None else argv
  is_ours = [text.startswith("--processes.") for text in argv]
  ours = list(itertools.compress(argv, is_ours))
  rest = list(itertools.compress(argv, map(operator.not_, is_ours)))

  def body() -> None:
    register()
    process_settings.set_cpu_device_threads()
    flags = {"lm_eval": " ".join(rest)}
    with processes.distributed_context(_parse_processes(ours), flags):
      # lm-eval writes results where this is 0, and has a cache for each.
      if processes.process_count() > 1:
        os.environ["LOCAL_RANK"] = str(jax.process_index())
      _run_harness(rest)

  status = launch.run_with_errors(body)
  if status:
    processes.exit_after_error(status)
  return status


def _parse_processes(argv: Sequence[str]) -> configs.Processes:
  """Reads flags --processes.NAME=VALUE."""
  parser = CommandParser(prog="lm_eval", add_help=False)
  for name, value in dataclasses.asdict(configs.Processes()).items():
    parser.add_argument(
      f"--processes.{name}", dest=name, type=type(value), default=value
    )
  return configs.Processes(**vars(parser.parse_args(argv)))


def _run_harness(arguments: Sequence[str]) -> None:
  """Calls lm-eval's command line, which reads the process's arguments."""
  from lm_eval.__main__ import (  # pyright: ignore[reportMissingImports]
    cli_evaluate,
  )

  before = sys.argv
  sys.argv = ["lm-eval", *arguments]
  try:
    cli_evaluate()
  finally:
    sys.argv = before


if _Base is not object:
  register()

if __name__ == "__main__":
  sys.exit(main())
