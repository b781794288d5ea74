"""A config dataclass ⇄ absl flags, and ⇄ JSON.

Every leaf field of an experiment's config is a flag: `--seed`,
`--optimizer.learning_rate`. A run's config is made in three steps, each of
which overrides the one before: a preset (`--preset`), the config of an earlier
run (`--config=…/config.json`), single flags.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from absl import flags as absl_flags

from instructgpt_jax import configs
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files

T = TypeVar("T")

_HELP = ("help", "h", "helpfull", "helpshort", "?")
_KINDS = {bool: "bool", int: "int", float: "float", str: "str"}
_WANTED = {
  bool: "true or false",
  int: "a whole number",
  float: "a number",
  str: "text",
}


class Help(Exception):
  """Raised by `parse` when `--help` is asked for; holds the text."""


def leaves(config: Any) -> Iterator[tuple[str, Any, dataclasses.Field]]:
  """(dotted name, value, field) of each leaf of a config, in order."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      for name, leaf, leaf_field in leaves(value):
        yield f"{field.name}.{name}", leaf, leaf_field
    else:
      yield field.name, value, field


def config_to_dict(config: Any) -> dict[str, Any]:
  """A config as nested JSON values."""
  return dataclasses.asdict(config)


def config_from_dict(
  default: T, values: Mapping[str, Any], *, file: str | None = None
) -> T:
  """`default` with the given values; an unknown name or type is a UserError.

  Args:
    default: the config whose missing fields are kept.
    values: nested JSON values.
    file: named in errors.
  """
  return replace(default, _flatten(default, values, file, ""), file=file)


def _flatten(
  default: Any, values: Any, file: str | None, prefix: str
) -> dict[str, Any]:
  if not isinstance(values, Mapping):
    raise UserError(
      f"is {type(values).__name__}, not a table",
      file=file,
      field=prefix.rstrip(".") or None,
      fix="give the config.json that a run wrote",
    )
  flat = {}
  names = [field.name for field in dataclasses.fields(default)]
  for name, value in values.items():
    if name not in names:
      raise UserError(
        "there is no such field",
        file=file,
        field=prefix + str(name),
        fix=configs.nearest(str(name), names) or "take it out",
      )
    old = getattr(default, name)
    if dataclasses.is_dataclass(old):
      flat.update(_flatten(old, value, file, f"{prefix}{name}."))
    else:
      flat[prefix + name] = value
  return flat


def replace(
  config: T, values: Mapping[str, Any], *, file: str | None = None
) -> T:
  """A copy of a config with the values of some dotted names.

  Raises:
    UserError: an unknown name, a wrong type, or a value out of range; the error
      has the dotted name as its field.
  """
  known = {name: (old, field) for name, old, field in leaves(config)}
  typed = {}
  for name, value in values.items():
    if name not in known:
      raise UserError(
        "there is no such field",
        file=file,
        field=name,
        fix=configs.nearest(name, known),
      )
    typed[name] = _typed(name, value, *known[name], file)
  return _replace(config, typed, file, "")


def _replace(
  config: Any, values: Mapping[str, Any], file: str | None, prefix: str
) -> Any:
  changed, sections = {}, {}
  for name, value in values.items():
    head, _, rest = name.partition(".")
    if rest:
      sections.setdefault(head, {})[rest] = value
    else:
      changed[head] = value
  for head, part in sections.items():
    changed[head] = _replace(
      getattr(config, head), part, file, f"{prefix}{head}."
    )
  try:
    return dataclasses.replace(config, **changed)
  except UserError as error:
    if error.field is None:
      raise
    leaf = error.field.rpartition(".")[2]
    raise UserError(
      error.problem,
      file=file,
      field=prefix + leaf,
      fix=error.fix,
    ) from error


def _typed(
  name: str,
  value: Any,
  old: Any,
  field: dataclasses.Field,
  file: str | None,
) -> Any:
  kind = type(old)
  if kind is float and type(value) is int:
    value = float(value)
  if type(value) is not kind:
    raise UserError(
      f"{value!r} is not {_WANTED[kind]}",
      file=file,
      field=name,
      fix=_fix(kind, field),
    )
  return value


def _fix(kind: type, field: dataclasses.Field) -> str:
  allowed = configs.allowed_range(field.metadata)
  if field.metadata.get("choices"):
    return f"give {allowed}"
  return f"give {_WANTED[kind]}" + (f" {allowed}" if allowed else "")


class _Parser(absl_flags.ArgumentParser):
  """Text of one flag → its typed value."""

  def __init__(self, name: str, kind: type, field: dataclasses.Field):
    self._name, self._kind, self._field = name, kind, field
    self.syntactic_help = _help(field)

  def flag_type(self) -> str:
    return _KINDS[self._kind]

  def parse(self, argument: Any) -> Any:
    if not isinstance(argument, str):
      return argument
    text = argument.strip()
    try:
      if self._kind is bool:
        return _BOOLS[text.lower()]
      return argument if self._kind is str else self._kind(text)
    except (ValueError, KeyError):
      raise UserError(
        f"{argument!r} is not {_WANTED[self._kind]}",
        field=f"--{self._name}",
        fix=_fix(self._kind, self._field),
      ) from None


_BOOLS = {
  "true": True, "t": True, "1": True, "yes": True, "y": True,
  "false": False, "f": False, "0": False, "no": False, "n": False,
}  # fmt: skip


class _Switch(absl_flags.Flag):
  """A boolean flag: `--name`, `--noname`, `--name=false`."""

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self.boolean = True


def _help(field: dataclasses.Field) -> str:
  metadata = field.metadata
  parts = [metadata.get("unit"), configs.allowed_range(metadata)]
  text = metadata.get("help", "")
  if any(parts):
    text += f" ({'; '.join(filter(None, parts))})"
  if metadata.get("paper"):
    text += f" [{metadata['paper']}]"
  return text


def define_flags(
  default: Any, flag_values: absl_flags.FlagValues
) -> absl_flags.FlagValues:
  """Defines one flag for each leaf of `default`, and the common four.

  Args:
    default: the config that names and types come from.
    flag_values: where the flags are defined; nothing global is touched.
  """
  for name, text in _COMMON.items():
    absl_flags.DEFINE_string(name, None, text, flag_values=flag_values)
  for name, value, field in leaves(default):
    parser = _Parser(name, type(value), field)
    kind = _Switch if isinstance(value, bool) else absl_flags.Flag
    flag = kind(
      parser, absl_flags.ArgumentSerializer(), name, None, _help(field)
    )
    absl_flags.DEFINE_flag(flag, flag_values=flag_values)
  return flag_values


_COMMON = {
  "workdir": "folder of the run: config, metrics, checkpoints, model",
  "preset": "sizes and recipe to start from",
  "config": "config.json, or workdir, of an earlier run to start from",
  "flagfile": "file with one flag a line",
}


def parse(
  argv: Sequence[str],
  get_config: Callable[[str], T],
  *,
  doc: str = "",
  experiment: str = "",
  default_preset: str = "",
  presets: Sequence[str] = (),
  runs: bool = True,
) -> tuple[T, str]:
  """The config and the workdir of a command line.

  Args:
    argv: arguments after the program's name.
    get_config: preset name → config.
    doc: the experiment's docstring, shown by `--help`.
    experiment: name that a `--config` file must have been written by; "" takes
      any.
    default_preset: given to `get_config` when there is no `--preset`.
    presets: names shown by `--help`.
    runs: whether a workdir must be given; where it may be missing it is "".

  Returns:
    (config, workdir).

  Raises:
    UserError: anything wrong with the command line.
    Help: `--help` is among the arguments.
  """
  values = define_flags(get_config(default_preset), absl_flags.FlagValues())
  values.set_gnu_getopt(True)
  arguments = [a for a in argv if a.lstrip("-") not in _HELP or a[:1] != "-"]
  rest = _parse_flags(values, arguments)
  preset = values["preset"].value or default_preset
  if len(arguments) != len(argv):
    raise Help(help_text(get_config(preset), doc, preset, presets))
  if rest:
    raise UserError(
      f"{rest[0]!r} is not a flag",
      fix="give flags as --name=value; --help lists them",
    )
  config = get_config(preset)
  if values["config"].value:
    config = _from_file(config, values["config"].value, experiment)
  flag_values = {
    name: values[name].value
    for name, _, _ in leaves(config)
    if values[name].present and values[name].value is not None
  }
  try:
    config = mark_explicit(replace(config, flag_values), flag_values)
  except UserError as error:
    if error.field is None:
      raise
    raise UserError(
      error.problem, field=f"--{error.field}", fix=error.fix
    ) from error
  workdir = values["workdir"].value or ""
  if runs and not workdir:
    raise UserError("is missing", field="--workdir", fix="give --workdir=DIR")
  return config, workdir


def mark_explicit(config: T, names: Iterable[str]) -> T:
  """Returns a copy of a config with more fields in `data.explicit`.

  Beside data fields these are learning rates, by their whole dotted names.

  Args:
    config: a config; one without a data section is returned unchanged.
    names: dotted names that the user has set, of any section.
  """
  data = getattr(config, "data", None)
  if not isinstance(data, configs.Data):
    return config
  known = {*filter(None, data.explicit.split(","))}
  names = list(names)
  known |= {n.removeprefix("data.") for n in names if n.startswith("data.")}
  known |= {n for n in names if n.endswith("optimizer.learning_rate")}
  explicit = ",".join(sorted(known - {"explicit"}))
  return replace(config, {"data.explicit": explicit})


def _parse_flags(
  values: absl_flags.FlagValues, arguments: Sequence[str]
) -> list[str]:
  try:
    return values(["program", *arguments])[1:]
  except absl_flags.UnrecognizedFlagError as error:
    raise UserError(
      "there is no such flag",
      field=f"--{error.flagname}",
      fix=_nearest_flag(error.flagname, list(values)),
    ) from error
  except absl_flags.CantOpenFlagFileError as error:
    name = getattr(error.__context__, "filename", None)
    raise UserError(
      "cannot be opened",
      field="--flagfile",
      file=str(name) if name else None,
      fix="give a text file with one flag a line",
    ) from error
  except UnicodeDecodeError as error:
    raise UserError(
      "is not UTF-8 text",
      field="--flagfile",
      fix="give a text file with one flag a line",
    ) from error
  except (absl_flags.Error, ValueError) as error:
    raise UserError(
      str(error).splitlines()[0], fix="give flags as --name=value"
    ) from error


def _nearest_flag(name: str, names: Sequence[str]) -> str:
  """A hint for a wrong flag: one with its last part, else the nearest."""
  same = [n for n in names if n.rpartition(".")[2] == name.rpartition(".")[2]]
  hint = configs.nearest(name, same) or configs.nearest(name, names)
  if not hint and same:
    hint = f"did you mean {same[0]!r}?"
  hint = re.sub(r"'([^']+)'", r"--\1", hint)
  return f"{hint} --help lists all flags".strip()


def _from_file(default: T, path: str, experiment: str) -> T:
  if os.path.isdir(path):
    path = os.path.join(path, files.CONFIG)
  value = files.read_json(
    path, fix="give the config.json that a run wrote in its workdir"
  )
  if isinstance(value, dict) and "config" in value:
    name = value.get("experiment", "")
    if experiment and name and name != experiment:
      raise UserError(
        f"is the config of {name!r}, not of {experiment!r}",
        file=path,
        fix=f"run python -m experiments.{name} with it",
      )
    value = value["config"]
  return config_from_dict(default, value, file=path)


def help_text(
  config: Any,
  doc: str = "",
  preset: str = "",
  presets: Sequence[str] = (),
) -> str:
  """What `--help` prints: the docstring, then each flag under its section."""
  width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 110)
  lines = [doc.strip(), ""] if doc else []
  lines.append("common flags:")
  for name, text in _COMMON.items():
    if name == "preset" and presets:
      text += f": {', '.join(presets)}"
    lines += _entry(
      name, "str", (preset or None) if name == "preset" else None, text, width
    )
  section = None
  for name, value, field in leaves(config):
    head = name.rpartition(".")[0]
    if head != section:
      section = head
      lines += ["", f"{head or 'experiment'}: {_section_doc(config, head)}"]
    lines += _entry(name, _KINDS[type(value)], value, _help(field), width)
  return "\n".join(lines) + "\n"


def _section_doc(config: Any, head: str) -> str:
  for part in filter(None, head.split(".")):
    config = getattr(config, part)
  return (type(config).__doc__ or "").strip().splitlines()[0]


def _entry(
  name: str, kind: str, value: Any, text: str, width: int
) -> list[str]:
  default = "" if value is None else f"={_text(value)}"
  head = f"  --{name}{default}  ({kind})"
  return [
    head,
    *textwrap.wrap(
      text, width, initial_indent=" " * 6, subsequent_indent=" " * 6
    ),
  ]


def _text(value: Any) -> str:
  if isinstance(value, bool):
    return str(value).lower()
  return repr(value) if isinstance(value, str) else str(value)


def render(config: Any) -> str:
  """One `name = value` line for each leaf: the golden text of a recipe."""
  lines = [f"{name} = {value!r}" for name, value, _ in leaves(config)]
  return "\n".join(lines) + "\n"
