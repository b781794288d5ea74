"""Talks to the model of any stage, in the terminal or over a file.

  python -m instructgpt_jax.chat --checkpoint=DIR
  python -m instructgpt_jax.chat --checkpoint=DIR --prompts=FILE --output=FILE

DIR is the workdir of a stage whose model writes text: pretrain, sft,
policy_init, ppo or ppo_ptx. In the terminal an answer appears token by token;
Ctrl-C stops it, Ctrl-D or /quit ends the talk, /reset forgets it, /help lists
these. A message that begins with a slash is sent after a space. The model sees
as many earlier turns as fit its prompt limit.

With --prompts each record of the file, in any format that the data reader
knows, is answered once; "-" is the standard input. --output gets one JSON line
a prompt, in their order: {"prompt", "completion", "ended"}, with a null
completion and a "skipped" reason where a prompt is too long. The prompt is a
text, or the list of its messages where it has several. The output may be a pipe
or "-", the standard output. What a prompt is answered depends on the seed and
on its position in the file, not on its batch.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, TextIO

import numpy as np

from instructgpt_jax import configs, streams
from instructgpt_jax.cli import launch, process_settings
from instructgpt_jax.data import encoding, packing, reading
from instructgpt_jax.data.records import Turn
from instructgpt_jax.data.tokenizers import StreamDecoder, Tokenizer
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files
from instructgpt_jax.runs.progress import Progress

_BIG = 2**31 - 1
_COMMAND = re.compile(r"/[^\s/]*(\s|$)")
_COMMANDS = (
  "/reset forgets the talk, /quit or Ctrl-D ends it, /help lists these; a"
  " message that begins with / is sent after a space"
)


class Sampling(NamedTuple):
  """How tokens are drawn."""

  max_tokens: int = 0  # longest answer; 0 takes the config's limit
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0


class Talker:
  """A model with what is needed to turn text into an answer.

  Attributes:
    max_tokens: longest answer.
    max_prompt: longest prompt, so that both fit the model's positions.
  """

  def __init__(
    self,
    model: Any,
    params: Any,
    tokenizer: Tokenizer,
    data: configs.Data,
    sampling: Sampling,
  ):
    """Takes a loaded policy.

    Args:
      model: a LanguageModel.
      params: its parameters.
      tokenizer: the one that it was trained with.
      data: tags, separator and limits of its prompts.
      sampling: how tokens are drawn.
    """
    context = model.config.context
    self.max_tokens = sampling.max_tokens or min(
      data.max_response_tokens,
      max(context - data.max_prompt_tokens, context // 2),
    )
    if self.max_tokens >= context:
      raise UserError(
        f"{self.max_tokens} tokens do not fit a context of {context}",
        field="--max_tokens",
        fix=f"give at most {context - 1}",
      )
    self.max_prompt = min(data.max_prompt_tokens, context - self.max_tokens)
    self.data = data
    self._model, self._tokenizer = model, tokenizer
    self._weights = _transposed(model, params)
    self._sampling = sampling

  def encode(self, turns: Sequence[Turn]) -> np.ndarray:
    """The ids of a conversation, ending with the bare assistant tag."""
    (ids,) = encoding.encode_prompts([tuple(turns)], self._tokenizer, self.data)
    return ids

  def fitting(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The newest turns that fit, from a user's turn on; a system turn stays.

    Raises:
      UserError: the last message alone is too long.
    """
    system = tuple(t for t in turns if t.role == "system")
    rest = [t for t in turns if t.role != "system"]
    length = 0
    for start, turn in enumerate(rest):
      if turn.role != "user":
        continue
      kept = (*system, *rest[start:])
      length = len(self.encode(kept))
      if length <= self.max_prompt:
        return kept
    raise UserError(
      f"the message has {length} tokens, and at most {self.max_prompt} fit",
      fix=self.fix_for_length(length),
      code="prompt_too_long",
    )

  def require_system(self, text: str) -> None:
    """Refuses a system text that leaves no room for a message.

    Raises:
      UserError: the text and the shortest message do not fit, or the chat
        template takes no system turn.
    """
    turns = (Turn("system", text), Turn("user", "?"))
    try:
      length = len(self.encode(turns)) if text else 0
    except UserError as error:
      if error.code != "template_refuses":
        raise
      raise UserError(
        error.problem, field="--system", fix="leave it out", code=error.code
      ) from error
    if length > self.max_prompt:
      raise UserError(
        f"has {length} tokens, and at most {self.max_prompt} fit",
        field="--system",
        fix=self.fix_for_length(length),
        code="prompt_too_long",
      )

  def fix_for_length(self, length: int) -> str:
    """Returns the fix for a prompt of more than `max_prompt` tokens."""
    room = self._model.config.context - length
    if room > 0 and length <= self.data.max_prompt_tokens:
      return f"start with --max_tokens={room} or less, which leaves room for it"
    return "say it in fewer words"

  def stream(self, turns: Sequence[Turn], index: int = 0) -> Iterator[str]:
    """Pieces of the answer's text, as soon as they are known.

    Args:
      turns: a conversation that ends with the user.
      index: changes what is drawn; a batch numbers its prompts so.
    """
    decoder = StreamDecoder(self._tokenizer, self._tokenizer.reply_lead)
    for token in self.tokens(self.encode(turns), index):
      text = decoder.push(token)
      if text:
        yield text
    text = decoder.flush()
    if text:
      yield text

  def tokens(self, ids: np.ndarray, index: int = 0) -> Iterator[int]:
    """Draws token after token until end-of-text, which is not given out."""
    import jax

    from instructgpt_jax.training.sampling import require_finite

    prefill, step = self._programs
    size = packing.smallest_bucket(len(ids), self._buckets)
    row, mask = packing.left_pad([ids], size, self._tokenizer.pad_id)
    logits, cache = prefill(self._weights, row, mask)
    key = jax.random.fold_in(jax.random.key(self._sampling.seed), index)
    for count in range(self.max_tokens):
      at = np.int32(count)
      token, logp, logits, cache = step(
        self._weights, logits, cache, key, at, np.int32(len(ids))
      )
      require_finite(logp)
      token = int(token[0])
      if token in self._tokenizer.stop_ids:
        return
      yield token

  def answer(
    self, prompts: Sequence[np.ndarray], progress: Progress, batch_size: int
  ) -> list[tuple[str, bool]]:
    """(text, ended) for each prompt; the shortest prompts go first.

    Args:
      prompts: ids of prompts of at most `max_prompt` tokens, each with the
        number that is folded into its random key as its position here.
      progress: counts prompts.
      batch_size: rows decoded together.
    """
    return [
      found
      for _, found in sorted(
        self._answers(list(enumerate(prompts)), progress, batch_size)
      )
    ]

  def _answers(
    self,
    prompts: list[tuple[int, np.ndarray]],
    progress: Progress,
    batch_size: int,
  ) -> Iterator[tuple[int, tuple[str, bool]]]:
    import jax

    from instructgpt_jax.training.sampling import require_finite
    from instructgpt_jax.types import PromptBatch

    key = jax.random.key(self._sampling.seed)
    by_size: dict[int, list[tuple[int, np.ndarray]]] = {}
    for index, ids in prompts:
      size = packing.smallest_bucket(len(ids), self._buckets)
      by_size.setdefault(size, []).append((index, ids))
    for size, group in sorted(by_size.items()):
      for start in range(0, len(group), batch_size):
        part = group[start : start + batch_size]
        # The last batch is filled up, so that one program serves them all.
        rows = part + part[-1:] * (batch_size - len(part))
        tokens, mask = packing.left_pad(
          [ids for _, ids in rows], size, self._tokenizer.pad_id
        )
        ids = np.array([index for index, _ in rows], np.int32)
        rollout = self._generate(
          self._weights, PromptBatch(tokens=tokens, mask=mask, ids=ids), key
        )
        drawn = np.asarray(rollout.tokens)[:, size:]
        real, ended = np.asarray(rollout.response_mask), rollout.ended
        require_finite(rollout.logp, real)
        text_ids = real & ~np.isin(drawn, self._tokenizer.stop_ids)
        for r, (index, _) in enumerate(part):
          text = self._tokenizer.decode_reply(drawn[r][text_ids[r]])
          yield index, (text, bool(ended[r]))
        progress.update(len(part))

  @functools.cached_property
  def _buckets(self) -> tuple[int, ...]:
    """Padded prompt lengths: powers of two, up to the limit itself."""
    sizes = [16]
    while sizes[-1] < self.max_prompt:
      sizes.append(2 * sizes[-1])
    return tuple(sorted({min(size, self.max_prompt) for size in sizes}))

  @functools.cached_property
  def _generate(self) -> Callable[..., Any]:
    import jax

    from instructgpt_jax.distributed.compiler_options import (
      decode_compiler_options,
    )
    from instructgpt_jax.models.sampling import generate

    s = self._sampling

    def run(weights, prompts, key):
      return generate(
        self._model,
        weights,
        prompts,
        key,
        max_new_tokens=self.max_tokens,
        temperature=s.temperature,
        top_k=s.top_k,
        top_p=s.top_p,
        eos_id=self._tokenizer.stop_ids,
        pad_id=self._tokenizer.pad_id,
      )

    width = self._model.config.width
    return jax.jit(run, compiler_options=decode_compiler_options(width))

  @functools.cached_property
  def _programs(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Prefill, and one step: draw a token and read it.

    The draws are those of `generate`, key for key.
    """
    import jax

    from instructgpt_jax.distributed.compiler_options import (
      decode_compiler_options,
    )
    from instructgpt_jax.models.sampling import sample
    from instructgpt_jax.models.transformer import positions_of

    model, s = self._model, self._sampling

    def prefill(weights, tokens, mask):
      return model.apply(
        {"params": weights},
        tokens,
        mask.astype(np.int32),
        positions_of(mask),
        tokens.shape[1] + self.max_tokens,
        method="prefill",
      )

    def step(weights, logits, cache, key, at, length):
      token, logp = sample(
        logits,
        jax.random.uniform(jax.random.fold_in(key, at))[None],
        temperature=s.temperature,
        top_k=s.top_k,
        top_p=s.top_p,
      )
      logits, cache = model.apply(
        {"params": weights},
        token,
        (length + at)[None],
        cache,
        method="decode",
      )
      return token, logp, logits, cache

    options = decode_compiler_options(model.config.width)
    return (
      jax.jit(prefill, compiler_options=options),
      jax.jit(step, donate_argnums=(1, 2), compiler_options=options),
    )


def _transposed(model: Any, params: Any) -> Any:
  """What is sampled with; the parameters themselves are not needed then."""
  import jax

  from instructgpt_jax.models.transformer import decoding_params

  return jax.jit(functools.partial(decoding_params, model))(params)


def load(checkpoint: str, sampling: Sampling) -> Talker:
  """The policy of a stage's workdir."""
  from instructgpt_jax.checkpoint import checkpoints as checkpoint_lib
  from instructgpt_jax.training import stage_model

  folder = pathlib.Path(checkpoint)
  if folder.is_dir() and not checkpoint_lib.has_model(folder):
    stages = [p for p in folder.iterdir() if checkpoint_lib.has_model(p)]
    if stages:
      names = ", ".join(sorted(p.name for p in stages))
      raise UserError(
        "holds the models of several stages",
        file=checkpoint,
        field="--checkpoint",
        fix=f"name the directory of one of them: {names}",
      )
  model, params, tokenizer, config = stage_model.load_policy(checkpoint)
  return Talker(model, params, tokenizer, config.data, sampling)


def printable(text: str) -> str:
  """Text in which a terminal finds nothing to obey."""
  return "".join(
    c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}"
    for c in text
  )


def talk(
  talker: Talker,
  system: str = "",
  *,
  keep: bool = True,
  read: Callable[[str], str] = input,
  out: TextIO | None = None,
) -> None:
  """Holds the conversation until the input ends.

  Args:
    talker: the model.
    system: text that stands before every conversation.
    keep: whether earlier turns stay in the prompt.
    read: gives the next line of the user; EOFError ends the talk.
    out: where answers go; stdout when None.
  """
  out = sys.stdout if out is None else out
  begin = [Turn("system", system)] if system else []
  turns = list(begin)
  count = 0
  while True:
    try:
      line = read("you> ")
    except (EOFError, KeyboardInterrupt):
      return
    message = line.strip()
    if message == "/quit":
      return
    if message == "/reset":
      turns = list(begin)
    answer = _answer_of_program(line)
    if answer:
      print(answer, file=out)
    if answer or not message:
      continue
    turns = [*(turns if keep else begin), Turn("user", message)]
    try:
      turns = list(talker.fitting(turns))
    except UserError as error:
      print(launch.error_text(error), file=out)
      turns = turns[:-1]
      continue
    turns.append(Turn("assistant", _say(talker, turns, count, out)))
    count += 1


def _answer_of_program(line: str) -> str:
  """Answers a line that is not for the model; "" for messages."""
  message = line.strip()
  if message == "/reset":
    return "(forgotten)"
  if message == "/help":
    return _COMMANDS
  if _COMMAND.match(line):
    return f"{printable(message.split()[0])} is not a command: {_COMMANDS}"
  problem = ""
  if not streams.is_utf8(message):
    problem = "the message is not valid UTF-8, and was not sent"
  elif "\0" in message:
    problem = "the message holds NUL characters, and was not sent"
  return launch.error_text(UserError(problem)) if problem else ""


def _say(talker: Talker, turns: Sequence[Turn], index: int, out: TextIO) -> str:
  """Writes an answer while it grows, and gives it back."""
  pieces = []
  try:
    for piece in talker.stream(turns, index):
      pieces.append(piece)
      out.write(printable(piece))
      out.flush()
  except KeyboardInterrupt:
    out.write(" (stopped)")
  out.write("\n")
  out.flush()
  return "".join(pieces).strip()


def answer_file(
  prompts: str,
  output: str,
  load_talker: Callable[[], Talker],
  *,
  system: str = "",
  overwrite: bool = False,
  batch_size: int = 32,
) -> tuple[int, int]:
  """Answers each prompt of a file; the output appears whole or not at all.

  Args:
    prompts: a source of prompts: path, glob, directory or tfds name.
    output: the jsonl file to write.
    load_talker: gives the model, called after the files have been looked at.
    system: text before every prompt that brings none of its own.
    overwrite: whether an existing output may be replaced.
    batch_size: prompts decoded together.

  Returns:
    (answered, skipped) counts.
  """
  path = pathlib.Path("/dev/stdout" if output == "-" else output)
  files.check_output(path, field="--output", overwrite=overwrite)
  records, report = reading.read_prompts(prompts)
  if report.skipped or report.unused or report.notes:
    print(report, file=sys.stderr)
  if (path.is_file() or path.is_fifo()) and any(
    pathlib.Path(p).exists() and path.samefile(p)
    for p in reading.expand(prompts)
  ):
    raise UserError(
      "is one of the files of prompts",
      file=output,
      field="--output",
      fix="name another file",
      code="output_is_input",
    )
  talker = load_talker()
  talker.require_system(system)
  encoded: list[np.ndarray] = []
  rows: list[dict[str, Any]] = []
  longest = 0  # tokens of the longest prompt that is skipped
  for prompt in records:
    turns = prompt.turns
    if system and turns[0].role != "system":
      turns = (Turn("system", system), *turns)
    try:
      ids = talker.encode(turns)
    except UserError as error:
      if error.code != "template_refuses":
        raise
      raise UserError(
        error.problem,
        file=prompt.origin or prompts,
        fix="give it other turns, or leave it out",
        code=error.code,
      ) from error
    row: dict[str, Any] = {
      "prompt": _as_given(prompt.turns),
      "completion": None,
      "ended": None,
    }
    if len(ids) > talker.max_prompt:
      row["skipped"] = (
        f"{len(ids)} tokens; at most {talker.max_prompt} leave room to answer"
      )
      longest = max(longest, len(ids))
    else:
      encoded.append(ids)
    rows.append(row)
  if longest and not encoded:
    raise UserError(
      f"all {len(rows)} prompts are over {talker.max_prompt} tokens",
      file=prompts,
      fix=talker.fix_for_length(longest),
      code="prompt_too_long",
    )
  progress = Progress(len(encoded), "answering", unit="prompt")
  size = min(batch_size, max(1, len(encoded)))
  try:
    answers = iter(talker.answer(encoded, progress, size))
  finally:
    progress.close()
  for row in rows:
    if "skipped" not in row:
      row["completion"], row["ended"] = next(answers)
  files.write_jsonl_atomic(path, rows)
  return len(encoded), len(rows) - len(encoded)


def _as_given(turns: Sequence[Turn]) -> str | list[dict[str, str]]:
  """Returns a prompt as its record states it: a text, or its messages."""
  if len(turns) == 1 and turns[0].role == "user":
    return turns[0].text
  return [{"role": turn.role, "content": turn.text} for turn in turns]


class _Parser(argparse.ArgumentParser):
  """Raises a UserError instead of printing its usage."""

  def error(self, message: str) -> NoReturn:
    fix = "see --help"
    names = [n for a in self._actions for n in a.option_strings if n[1] == "-"]
    unknown = message.removeprefix("unrecognized arguments: ")
    if unknown != message:
      flag = unknown.split("=")[0].split()[0]
      message = f"there is no flag {flag}"
      fix = configs.nearest(flag, names) or fix
    raise UserError(message, fix=fix)


def _number(kind: type, low: float, high: float) -> Callable[[str], Any]:
  def parse(text: str) -> Any:
    try:
      value = kind(text)
    except ValueError:
      value = None
    if value is None or not low <= value <= high:
      shown = f"from {low:g}" + (f" to {high:g}" if high < _BIG else " up")
      what = "a whole number" if kind is int else "a number"
      raise argparse.ArgumentTypeError(f"{text!r} is not {what} {shown}")
    return value

  return parse


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = _Parser(
    prog="python -m instructgpt_jax.chat",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("--checkpoint", required=True, metavar="DIR", help="workdir of a stage")
  add("--prompts", metavar="FILE", help="answer these instead of talking")
  add("--output", metavar="FILE", help="jsonl file for the answers")
  add("--overwrite", action="store_true", help="replace an existing output")
  add("--system", default="", metavar="TEXT", help="text before every prompt")
  add(
    "--forget",
    action="store_true",
    help="answer every message on its own, without the turns before it",
  )
  add(
    "--max_tokens",
    type=_number(int, 1, _BIG),
    default=0,
    help="longest answer, tokens (default: the limit it was trained with)",
  )
  add(
    "--temperature",
    type=_number(float, 0, 100),
    default=1.0,
    help="0 takes the likeliest token (default: 1)",
  )
  add(
    "--top_k",
    type=_number(int, 0, _BIG),
    default=0,
    help="draw from the k likeliest tokens; 0 is all (default: 0)",
  )
  add(
    "--top_p",
    type=_number(float, 0, 1),
    default=1.0,
    help="draw from the likeliest tokens of this mass (default: 1)",
  )
  add(
    "--seed",
    type=_number(int, 0, _BIG),
    default=None,
    help="of the draws (default: the clock when talking, 0 for a file)",
  )
  add(
    "--batch_size",
    type=_number(int, 1, 4096),
    default=32,
    help="prompts of a file decoded together (default: 32)",
  )
  flags = parser.parse_args(argv)
  if not streams.is_utf8(flags.system):
    raise UserError(
      "is not valid UTF-8", field="--system", fix="give it in UTF-8",
      code="not_utf8",
    )  # fmt: skip
  if bool(flags.prompts) != bool(flags.output):
    flag, other = "--prompts", "--output"
    if flags.output:
      flag, other = other, flag
    raise UserError(f"{flag} is given without {other}", fix=f"add {other}")
  return flags


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 0, 2 after a mistake, 130 after an interrupt."""
  interrupted = False

  def run():
    nonlocal interrupted
    try:
      _run(_flags(argv))
    except KeyboardInterrupt:
      interrupted = True

  status = launch.run_with_errors(run)
  if interrupted:
    print("interrupted; nothing was written", file=sys.stderr)
    return launch.INTERRUPTED
  return status


def _run(flags: argparse.Namespace) -> None:
  process_settings.silence_libraries()
  process_settings.trim_malloc_after_compile()
  process_settings.tune_gc()
  seed = flags.seed
  if seed is None:
    seed = 0 if flags.prompts else time.time_ns() % 2**31
  sampling = Sampling(
    max_tokens=flags.max_tokens,
    temperature=flags.temperature,
    top_k=flags.top_k,
    top_p=flags.top_p,
    seed=seed,
  )

  def loaded() -> Talker:
    return load(flags.checkpoint, sampling)

  if flags.prompts:
    answered, skipped = answer_file(
      flags.prompts,
      flags.output,
      loaded,
      system=flags.system,
      overwrite=flags.overwrite,
      batch_size=flags.batch_size,
    )
    more = f", {skipped} too long and skipped" if skipped else ""
    more += " (a smaller --max_tokens leaves room)" if skipped else ""
    print(f"{answered} prompts answered{more}: {flags.output}", file=sys.stderr)
    return
  if not streams.accept_all_bytes():
    raise UserError(
      "the standard input is closed",
      fix="talk in a terminal, or answer a file with --prompts and --output",
      code="no_input",
    )
  talker = loaded()
  talker.require_system(flags.system)
  on_terminal = sys.stdin.isatty()
  if on_terminal:
    try:
      import readline  # noqa: F401  # gives `input` its line editing
    except ImportError:
      pass
    print(f"{flags.checkpoint}: {_COMMANDS}")

  def read(prompt: str) -> str:
    try:
      line = input(prompt if on_terminal else "")
    except (EOFError, KeyboardInterrupt):
      if on_terminal:
        print()
      raise
    except OSError as error:
      raise UserError(
        f"the standard input cannot be read: {error.strerror}", code="no_input"
      ) from error
    return streams.as_utf8(line).removeprefix("\ufeff")

  talk(talker, flags.system, keep=not flags.forget, read=read)


if __name__ == "__main__":
  sys.exit(main())
