"""A config dataclass ⇄ absl flags, and ⇄ JSON.

Every leaf field of an experiment's config is a flag: `--seed`,
`--optimizer.learning_rate`. A run's config is made in three steps, each of
which overrides the one before: a preset (`--preset`), the config of an earlier
run (`--config=…/config.json`), single flags.

Where a field may be None, `none` on the command line is None. So are 0 and the
empty text, which meant "none" in earlier versions.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from absl import flags as absl_flags

from instructgpt_jax import configs
from instructgpt_jax.configs import renamed
from instructgpt_jax.errors import UserError
from instructgpt_jax.runs import files

T = TypeVar("T")

_HELP = ("help", "h", "helpfull", "helpshort", "?")
_HELP_FULL = "helpfull"
_KINDS = {bool: "bool", int: "int", float: "float", str: "str"}
_KIND_NAMES = {
  bool: "true or false",
  int: "a whole number",
  float: "a number",
  str: "text",
}


class Help(Exception):
  """Raised by `parse` when `--help` is asked for; holds the text."""


def leaves(config: Any) -> Iterator[tuple[str, Any, configs.Option]]:
  """Yields (dotted name, value, option) of each leaf of a config, in order."""
  options = configs.options(type(config))
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      for name, leaf, option in leaves(value):
        yield f"{field.name}.{name}", leaf, option
    else:
      yield field.name, value, options[field.name]


def config_to_dict(config: Any) -> dict[str, Any]:
  """Returns a config as nested JSON values."""
  return dataclasses.asdict(config)


def config_from_dict(
  default: T, values: Mapping[str, Any], *, file: str | None = None
) -> T:
  """Returns a config with some values of a config.json.

  Names and values of earlier versions are read as today's.

  Args:
    default: the config that has all other values.
    values: nested JSON values.
    file: named in errors.

  Raises:
    UserError: an unknown name, a wrong type, or a value out of range.
  """
  if isinstance(values, Mapping):
    values = renamed.upgrade(values, config_to_dict(default))
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
      code="not_a_table",
    )
  flat = {}
  names = [field.name for field in dataclasses.fields(default)]
  for name, value in values.items():
    if name not in names:
      raise UserError(
        "there is no such field",
        file=file,
        field=prefix + str(name),
        fix=configs.nearest(str(name), names) or "delete it",
        code="unknown_field",
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
  """Returns a copy of a config with other values of some fields.

  Args:
    config: the config.
    values: dotted name → value.
    file: named in errors.

  Raises:
    UserError: an unknown name, a wrong type, or a value out of range; the error
      has the dotted name as its field.
  """
  options = {name: option for name, _, option in leaves(config)}
  typed = {}
  for name, value in values.items():
    if name not in options:
      raise _old_name(name, options, file=file) or UserError(
        "there is no such field",
        file=file,
        field=name,
        fix=configs.nearest(name, options),
        code="unknown_field",
      )
    typed[name] = _typed(name, value, options[name], file)
  return _replace(config, typed, file, "")


def _old_name(
  name: str, known: Iterable[str], *, prefix: str = "", file: str | None = None
) -> UserError | None:
  """Returns the error of a name of an earlier version, or None.

  Args:
    name: a dotted name that no field has.
    known: the names of all fields.
    prefix: what stands before names in the error.
    file: named in the error.
  """
  if name in renamed.REMOVED:
    return UserError(
      f"has been removed: {renamed.REMOVED[name]}",
      file=file,
      field=prefix + name,
      fix="leave it out",
      code="removed_flag",
    )
  new = renamed.new_name(name, set(known))
  if new is None:
    return None
  return UserError(
    f"has been renamed to {prefix}{new}",
    file=file,
    field=prefix + name,
    fix=f"give {prefix}{new}",
    code="renamed_flag",
  )


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
      code=error.code,
    ) from error


def _typed(
  name: str, value: Any, option: configs.Option, file: str | None
) -> Any:
  """Returns a value as its field has it, or raises a UserError."""
  value = option.normalize(value)
  if value is None and option.optional:
    return None
  if option.type is float and type(value) is int:
    value = float(value)
  if type(value) is not option.type:
    raise UserError(
      f"{value!r} is not {_KIND_NAMES[option.type]}",
      file=file,
      field=name,
      fix=_fix(option),
      code="wrong_type",
    )
  return value


def _fix(option: configs.Option) -> str:
  if option.choices:
    return f"give {option.allowed}"
  return f"give {_KIND_NAMES[option.type]} {option.allowed}".strip()


class _Parser(absl_flags.ArgumentParser):
  """Parser of one flag's text into its typed value; none stays text."""

  def __init__(self, name: str, option: configs.Option):
    self._name, self._option = name, option
    self.syntactic_help = _help(option)

  def flag_type(self) -> str:
    return _kind(self._option)

  def parse(self, argument: Any) -> Any:
    if not isinstance(argument, str):
      return argument
    text = argument.strip()
    if self._option.optional and self._option.normalize(text) is None:
      return text
    try:
      if self._option.type is bool:
        return _BOOLS[text.lower()]
      return argument if self._option.type is str else self._option.type(text)
    except (ValueError, KeyError):
      raise UserError(
        f"{argument!r} is not {_KIND_NAMES[self._option.type]}",
        field=f"--{self._name}",
        fix=_fix(self._option),
        code="wrong_type",
      ) from None


_BOOLS = {
  "true": True, "t": True, "1": True, "yes": True, "y": True,
  "false": False, "f": False, "0": False, "no": False, "n": False,
}  # fmt: skip


class _Switch(absl_flags.Flag):
  """Boolean flag: `--name`, `--noname`, `--name=false`."""

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self.boolean = True


def _kind(option: configs.Option) -> str:
  """Returns the type of a field as `--help` shows it."""
  return _KINDS[option.type] + (" or none" if option.optional else "")


def _help(option: configs.Option) -> str:
  text = option.help
  details = "; ".join(filter(None, [option.unit, _bounds(option)]))
  if details:
    text += f" ({details})"
  return text + (f" [{option.paper}]" if option.paper else "")


def _bounds(option: configs.Option) -> str:
  """Returns the allowed values; that none is allowed stands by the type."""
  return dataclasses.replace(option, optional=False).allowed


def define_flags(
  default: Any, flag_values: absl_flags.FlagValues
) -> absl_flags.FlagValues:
  """Defines one flag for each leaf of a config, and the common four.

  Args:
    default: the config that names and types come from.
    flag_values: where the flags are defined; nothing global changes.

  Returns:
    `flag_values`.
  """
  for name, text in _COMMON.items():
    absl_flags.DEFINE_string(name, None, text, flag_values=flag_values)
  for name, _, option in leaves(default):
    parser = _Parser(name, option)
    kind = _Switch if option.type is bool else absl_flags.Flag
    flag = kind(
      parser, absl_flags.ArgumentSerializer(), name, None, _help(option)
    )
    absl_flags.DEFINE_flag(flag, flag_values=flag_values)
  return flag_values


_COMMON = {
  "workdir": "Directory of the run: config, metrics, checkpoints, model.",
  "preset": "Sizes and settings to start from",
  "config": "A config.json, or workdir, of an earlier run to start from.",
  "flagfile": "File with one flag per line.",
}


class Call(NamedTuple):
  """What a command line asks for.

  Attributes:
    config: the config.
    workdir: the workdir; "" where it may be missing and is.
    has_settings: whether `--preset` or `--config` names the settings.
  """

  config: Any
  workdir: str
  has_settings: bool


def parse(
  argv: Sequence[str], get_config: Callable[[str], T], **options: Any
) -> tuple[T, str]:
  """Returns the config and the workdir of a command line.

  Args:
    argv: arguments after the program's name.
    get_config: returns the config of a preset.
    **options: as in `parse_call`, which also names the errors.
  """
  call = parse_call(argv, get_config, **options)
  return call.config, call.workdir


def parse_call(
  argv: Sequence[str],
  get_config: Callable[[str], Any],
  *,
  doc: str = "",
  experiment: str = "",
  default_preset: str = "",
  choose_preset: Callable[[Any], str] | None = None,
  presets: Sequence[str] = (),
  runs: bool = True,
) -> Call:
  """Parses a command line.

  Args:
    argv: arguments after the program's name.
    get_config: returns the config of a preset.
    doc: the experiment's docstring, shown by `--help`.
    experiment: name that a `--config` file must have been written by; ""
      accepts any.
    default_preset: preset where there is no `--preset`.
    choose_preset: returns a better default for a config, which comes from
      `default_preset` and the other flags.
    presets: names shown by `--help`.
    runs: whether a workdir must be given.

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
    full = any(a.lstrip("-") == _HELP_FULL for a in argv)
    raise Help(help_text(get_config(preset), doc, preset, presets, full=full))
  if rest:
    raise UserError(
      f"{rest[0]!r} is not a flag",
      fix="give flags as --name=value; --help lists them",
      code="not_a_flag",
    )
  config = _with_flags(get_config(preset), values, experiment)
  if choose_preset and not values["preset"].value:
    better = choose_preset(config)
    if better != preset:
      config = _with_flags(get_config(better), values, experiment)
  workdir = values["workdir"].value or ""
  if runs and not workdir:
    raise UserError(
      "is missing",
      field="--workdir",
      fix="give --workdir=DIR",
      code="no_workdir",
    )
  has_settings = any(values[name].value for name in ("preset", "config"))
  return Call(config, workdir, has_settings)


def _with_flags(config: T, values: absl_flags.FlagValues, experiment: str) -> T:
  """Returns a preset's config, changed by `--config` and the other flags."""
  if values["config"].value:
    config = _from_file(config, values["config"].value, experiment)
  flag_values = {
    name: values[name].value
    for name, _, _ in leaves(config)
    if values[name].present and values[name].value is not None
  }
  try:
    return mark_explicit(replace(config, flag_values), flag_values)
  except UserError as error:
    if error.field is None:
      raise
    raise UserError(
      error.problem,
      field=f"--{error.field}",
      fix=error.fix,
      code=error.code,
    ) from error


def mark_explicit(config: T, names: Iterable[str]) -> T:
  """Returns a copy of a config with more flags in `data.explicit`.

  Args:
    config: a config; one without a data section is returned unchanged.
    names: dotted names of the flags that the user has set. Those of the
      processes are left out, since they differ between processes.
  """
  data = getattr(config, "data", None)
  if not isinstance(data, configs.Data):
    return config
  known = {*filter(None, data.explicit.split(","))}
  known |= {
    name.removeprefix("data.")
    for name in names
    if not name.startswith("processes.")
  }
  explicit = ",".join(sorted(known - {"explicit"}))
  return replace(config, {"data.explicit": explicit})


def explicit_values(config: configs.Experiment) -> dict[str, Any]:
  """Returns the fields that the user has set: dotted name → value."""
  return {
    name: value for name, value, _ in leaves(config) if config.is_explicit(name)
  }


def _parse_flags(
  values: absl_flags.FlagValues, arguments: Sequence[str]
) -> list[str]:
  try:
    return values(["program", *arguments])[1:]
  except absl_flags.UnrecognizedFlagError as error:
    names = list(values)
    old = [error.flagname, error.flagname.removeprefix("no")]
    renames = (_old_name(name, names, prefix="--") for name in old)
    raise next(filter(None, renames), None) or UserError(
      "there is no such flag",
      field=f"--{error.flagname}",
      fix=_nearest_flag(error.flagname, names),
      code="unknown_flag",
    ) from error
  except absl_flags.CantOpenFlagFileError as error:
    name = getattr(error.__context__, "filename", None)
    raise UserError(
      "cannot be opened",
      field="--flagfile",
      file=str(name) if name else None,
      fix="give a text file with one flag per line",
      code="bad_flagfile",
    ) from error
  except UnicodeDecodeError as error:
    raise UserError(
      "is not UTF-8 text",
      field="--flagfile",
      fix="give a text file with one flag per line",
      code="bad_flagfile",
    ) from error
  except (absl_flags.Error, ValueError) as error:
    raise UserError(
      str(error).splitlines()[0],
      fix="give flags as --name=value",
      code="bad_flag",
    ) from error


def _nearest_flag(name: str, names: Sequence[str]) -> str:
  """Returns a hint: a flag with the same last part, else the nearest."""
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
        code="other_experiment",
      )
    value = value["config"]
  return config_from_dict(default, value, file=path)


def help_text(
  config: Any,
  doc: str = "",
  preset: str = "",
  presets: Sequence[str] = (),
  *,
  full: bool = True,
) -> str:
  """Returns what `--help` prints: the docstring, then flags by section.

  Args:
    config: the config whose values are shown as defaults.
    doc: the experiment's docstring.
    preset: name of the preset that `config` comes from.
    presets: names of all presets.
    full: whether to show advanced flags too, as `--helpfull` does.
  """
  width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 110)
  lines = [doc.strip(), ""] if doc else []
  lines += [*textwrap.wrap(_TAGS, width), ""]
  lines.append("common flags:")
  for name, text in _COMMON.items():
    if name == "preset":
      text += f": {', '.join(presets)}." if presets else "."
      if not isinstance(config, configs.PretrainExperiment):
        text += _RECIPE
    default = (preset or None) if name == "preset" else None
    lines += _entry(name, "str", default, text, width)
  hidden = 0
  section = None
  for name, value, option in leaves(config):
    head = name.rpartition(".")[0]
    if head != section:
      lines += _folded(section, hidden)
      section, hidden = head, 0
      lines += ["", f"{head or 'experiment'}: {_section_doc(config, head)}"]
    if option.advanced and not full:
      hidden += 1
      continue
    shown = "none" if value is None else _text(value)
    lines += _entry(name, _kind(option), shown, _help(option), width)
  lines += _folded(section, hidden)
  return "\n".join(lines) + "\n"


_RECIPE = (
  " Without it, a run whose --init_from is a pretrained model has settings by"
  " the model's size instead of these defaults (docs/models.md)."
)
_TAGS = (
  "A flag is shown with its default and type, its unit and range in"
  " parentheses, and a section of arXiv:2203.02155 in brackets. [P]: the paper"
  " prints the value. [C]: another source has it. [D]: our arithmetic gives it."
  " [I]: we inferred it."
)


def _folded(section: str | None, count: int) -> list[str]:
  """Returns the line that stands for a section's advanced flags."""
  if not count:
    return []
  return [f"  {count} more --{section}.* flags: --{_HELP_FULL} shows them"]


def _section_doc(config: Any, head: str) -> str:
  for part in filter(None, head.split(".")):
    config = getattr(config, part)
  return (type(config).__doc__ or "").strip().splitlines()[0]


def _entry(
  name: str, kind: str, default: str | None, text: str, width: int
) -> list[str]:
  head = f"  --{name}" + ("" if default is None else f"={default}")
  return [
    f"{head}  ({kind})",
    *textwrap.wrap(
      text, width, initial_indent=" " * 6, subsequent_indent=" " * 6
    ),
  ]


def _text(value: Any) -> str:
  if isinstance(value, bool):
    return str(value).lower()
  return repr(value) if isinstance(value, str) else str(value)
