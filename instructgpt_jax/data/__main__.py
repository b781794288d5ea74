"""Describes data files: python -m instructgpt_jax.data PATH... [--preset=tiny]

For each file it prints the format, the number of records of each kind, their
lengths, what was skipped, what curation would drop at the limits of a preset or
of flags, and one record as the model sees it. `show` prints more of them:

python -m instructgpt_jax.data show PATH... --tokenizer=PATH [--n=5]

`prepare` tokenises documents once, for corpora larger than memory:

python -m instructgpt_jax.data prepare PATH... --to=DIR --length=1024
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from instructgpt_jax import configs, streams
from instructgpt_jax.configs import presets
from instructgpt_jax.data import (
  data_flags,
  descriptions,
  inspection,
  reading,
  show,
  tokenizers,
)
from instructgpt_jax.data.inspection import File, Settings
from instructgpt_jax.data.prepared import command as prepare_command
from instructgpt_jax.data.reading import paths
from instructgpt_jax.errors import UserError

# Programs that the first argument names.
_COMMANDS = {"show": show.main, "prepare": prepare_command.main}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m instructgpt_jax.data",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  data_flags.add_paths(parser)
  parser.add_argument(
    "--tokenizer",
    default="",
    metavar="PATH",
    help="what counts tokens: a workdir or model directory, a sentencepiece"
    " .model, a tokenizer.json, or a directory with encoder.json and vocab.bpe"
    " (default: words between blanks)",
  )
  data_flags.add_data(parser)
  return parser


def _settings(
  args: argparse.Namespace, data: configs.Data, files: Sequence[File]
) -> tuple[Settings, str]:
  """Returns the settings for judging files, and a sentence about them."""
  preset = args.preset
  text = (
    f"Limits{f' of the preset {preset}' if preset else ''}:"
    f" {data.max_prompt_tokens} tokens a prompt, {data.max_response_tokens} a"
    " reply."
  )
  if not preset and not data.explicit:
    text += " These are the defaults; --preset=NAME takes those of a preset."
  if args.tokenizer:
    tokenizer = tokenizers.load_tokenizer(args.tokenizer)
    return Settings(data, tokenizer, "tokens"), text
  if preset:
    tokenizer = inspection.train_on_files(
      files, data, presets.sft(preset).tokenizer
    )
    text += (
      "\nTokens are those of a tokenizer trained on these files, as by a stage"
      " without init_from; --tokenizer=PATH takes another."
    )
    return Settings(data, tokenizer, "tokens"), text
  text += (
    "\nLengths are in words between blanks, so a stage drops and cuts more;"
    " give --tokenizer=PATH for tokens."
  )
  return Settings(data, inspection.WordTokenizer(), "words"), text


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the report; returns the exit status."""
  streams.accept_all_text()
  argv = sys.argv[1:] if argv is None else argv
  if argv and argv[0] in _COMMANDS:
    return _COMMANDS[argv[0]](argv[1:])
  args = _parser().parse_args(argv)
  try:
    data = data_flags.data(args)
    listing = reading.list_files(*args.paths)
    files = inspection.read_files(listing)
    settings, text = _settings(args, data, files)
    print(text)
    for file in files:
      print("\n".join(descriptions.describe(file, settings)), flush=True)
    for line in paths.show_ignored(listing.ignored):
      print(line)
    for line in descriptions.describe_together(files, settings):
      print(line, flush=True)
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  except BrokenPipeError:
    sys.stderr.close()
  return 0


if __name__ == "__main__":
  sys.exit(main())
