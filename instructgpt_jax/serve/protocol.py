"""Reads requests of the OpenAI interface; what it cannot do, it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from instructgpt_jax import streams
from instructgpt_jax.data.records import Turn

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
_MAX_STOPS = 16
_MAX_PROMPTS = 2048
_COLDEST = 1e-4  # temperatures below it are 0
_ROLES = {
  "system": "system",
  "developer": "system",
  "user": "user",
  "assistant": "assistant",
}
# Labels of a request, which change no answer.
_LABELS = (
  "user",
  "metadata",
  "safety_identifier",
  "prompt_cache_key",
  "service_tier",
)
# Values with which a parameter changes nothing.
_NEUTRAL: Mapping[str, Collection[Any]] = {
  "best_of": (1,),
  "suffix": ("",),
  "presence_penalty": (0,),
  "frequency_penalty": (0,),
  "logit_bias": ({},),
  "response_format": ({"type": "text"},),
  "modalities": (["text"],),
  "tools": ([],),
  "tool_choice": ("none", "auto"),
  "functions": ([],),
  "store": (False,),
}
_NEUTRAL_OF_MESSAGES: Mapping[str, Collection[Any]] = {
  "refusal": (),
  "audio": (),
  "name": (),
  "annotations": ([],),
  "tool_calls": ([],),
  "function_call": (),
}


class ApiError(Exception):
  """An error with an HTTP status, in the form of OpenAI's.

  Attributes:
    status: HTTP status.
    message: what is wrong.
    param: the parameter that is at fault, or None.
    code: stable name of the kind of error.
  """

  def __init__(
    self, status: int, message: str, *, code: str, param: str | None = None
  ):
    super().__init__(message)
    self.status, self.message = status, message
    self.param, self.code = param, code

  def body(self) -> dict[str, Any]:
    """Returns the JSON object of the response."""
    kinds = {404: "not_found_error", 429: "rate_limit_error"}
    kind = "server_error" if self.status >= 500 else "invalid_request_error"
    return {
      "error": {
        "message": self.message,
        "type": kinds.get(self.status, kind),
        "param": self.param,
        "code": self.code,
      }
    }


class Request(NamedTuple):
  """A request for answers.

  Attributes:
    model: name of the model.
    prompts: texts or token ids to continue; empty in a chat.
    turns: the conversation of a chat.
    n: answers to each prompt.
    max_tokens: longest answer; None for the default.
    temperature: 0 takes the most likely token.
    top_p: probability mass of the most likely tokens to sample from.
    seed: seed of the answers; None for a random one.
    stop: texts that end an answer.
    logprobs: number of most likely tokens to return; None for no
      log-probabilities.
    echo: whether an answer begins with its prompt.
    stream: whether answers are sent while they are sampled.
    include_usage: whether a stream ends with the token counts.
  """

  model: str
  prompts: tuple[str | tuple[int, ...], ...]
  turns: tuple[Turn, ...]
  n: int
  max_tokens: int | None
  temperature: float
  top_p: float
  seed: int | None
  stop: tuple[str, ...]
  logprobs: int | None
  echo: bool
  stream: bool
  include_usage: bool


def parse_json(body: bytes) -> dict[str, Any]:
  """Parses the body of a request.

  Raises:
    ApiError: it is not a JSON object.
  """
  try:
    value = json.loads(body)
  except (ValueError, RecursionError) as error:
    raise ApiError(
      400, f"The body is not valid JSON: {error}.", code="bad_json"
    ) from error
  if not isinstance(value, dict):
    raise ApiError(400, "The body is not a JSON object.", code="bad_json")
  return value


def parse_completion(values: Mapping[str, Any]) -> Request:
  """Reads a request to /v1/completions.

  Raises:
    ApiError: a parameter is missing, invalid or not supported.
  """
  fields = _Fields(values)
  request = Request(
    model=fields.text("model"),
    prompts=_prompts(fields.take("prompt")),
    turns=(),
    max_tokens=fields.whole("max_tokens", 16, 0),
    logprobs=fields.whole("logprobs", None, 0, MAX_TOP_LOGPROBS),
    echo=fields.flag("echo"),
    **_common(fields),
  )
  if request.max_tokens == 0 and not request.echo:
    raise _invalid("max_tokens", "must be at least 1 without echo")
  fields.refuse_rest(_NEUTRAL)
  return request


def parse_chat(values: Mapping[str, Any]) -> Request:
  """Reads a request to /v1/chat/completions.

  Raises:
    ApiError: a parameter is missing, invalid or not supported.
  """
  fields = _Fields(values)
  model = fields.text("model")
  turns = _turns(fields.take("messages"))
  limits = {
    name: fields.whole(name, None, 1)
    for name in ("max_tokens", "max_completion_tokens")
  }
  lengths = {limit for limit in limits.values() if limit is not None}
  if len(lengths) > 1:
    raise _invalid("max_tokens", "and max_completion_tokens differ; send one")
  logprobs = fields.flag("logprobs")
  top = fields.whole("top_logprobs", None, 0, MAX_TOP_LOGPROBS)
  if top is not None and not logprobs:
    raise _invalid("top_logprobs", "needs logprobs to be true")
  request = Request(
    model=model,
    prompts=(),
    turns=turns,
    max_tokens=next(iter(lengths), None),
    logprobs=(top or 0) if logprobs else None,
    echo=False,
    **_common(fields),
  )
  fields.refuse_rest(_NEUTRAL)
  return request


class _Fields:
  """Parameters of a request; null is as good as absent."""

  def __init__(self, values: Mapping[str, Any]):
    self._rest = {k: v for k, v in values.items() if v is not None}

  def take(self, name: str) -> Any:
    """Removes and returns a parameter; None if it is absent."""
    return self._rest.pop(name, None)

  def text(self, name: str) -> str:
    """Returns a required text."""
    value = self.take(name)
    if value is None:
      raise _missing(name)
    if not isinstance(value, str):
      raise _invalid(name, "must be a text")
    return value

  def flag(self, name: str) -> bool:
    """Returns a truth value; False if it is absent."""
    value = self.take(name)
    if value is not None and not isinstance(value, bool):
      raise _invalid(name, "must be true or false")
    return bool(value)

  def whole(
    self, name: str, default: Any, low: int, high: int = 2**31 - 1
  ) -> Any:
    """Returns a whole number in a range."""
    value = self.take(name)
    if value is None:
      return default
    if type(value) is not int or not low <= value <= high:
      raise _invalid(name, f"must be a whole number from {low} to {high}")
    return value

  def number(self, name: str, default: float, high: float) -> float:
    """Returns a number from 0 to a bound."""
    value = self.take(name)
    if value is None:
      return default
    if type(value) not in (int, float) or not 0 <= value <= high:
      raise _invalid(name, f"must be a number from 0 to {high:g}")
    return float(value)

  def refuse_rest(
    self, neutral: Mapping[str, Collection[Any]], prefix: str = ""
  ) -> None:
    """Refuses the remaining parameters, unless they change nothing."""
    for name, value in self._rest.items():
      if value not in neutral.get(name, ()):
        known = name in neutral
        raise ApiError(
          400,
          f"{prefix}{name} is not supported"
          + (f" with the value {_shorten(value)}." if known else "."),
          param=f"{prefix}{name}",
          code="unsupported_parameter",
        )


def _common(fields: _Fields) -> dict[str, Any]:
  """Reads the parameters that both kinds of request have."""
  for name in _LABELS:
    fields.take(name)
  stream = fields.flag("stream")
  options = fields.take("stream_options")
  include_usage = False
  if options is not None:
    if not stream or not isinstance(options, dict):
      raise _invalid("stream_options", "is an object, and needs stream")
    inner = _Fields(options)
    include_usage = inner.flag("include_usage")
    inner.refuse_rest({"include_obfuscation": (False,)}, "stream_options.")
  temperature = fields.number("temperature", 1.0, 100)
  return dict(
    n=fields.whole("n", 1, 1, MAX_CHOICES),
    temperature=temperature if temperature >= _COLDEST else 0.0,
    top_p=fields.number("top_p", 1.0, 1),
    seed=fields.whole("seed", None, -(2**63), 2**63 - 1),
    stop=_stop(fields.take("stop")),
    stream=stream,
    include_usage=include_usage,
  )


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
  """Reads a text, token ids, or a list of either."""
  if value is None:
    raise _missing("prompt")
  values = value if isinstance(value, list) else [value]
  if values and all(type(v) is int for v in values):
    values = [values]
  if not 1 <= len(values) <= _MAX_PROMPTS:
    raise _invalid("prompt", f"must have from 1 to {_MAX_PROMPTS} prompts")
  prompts: list[str | tuple[int, ...]] = []
  for item in values:
    if isinstance(item, str):
      prompts.append(_text("prompt", item))
    elif isinstance(item, list) and all(type(i) is int for i in item):
      prompts.append(tuple(item))
    else:
      raise _invalid("prompt", "must be a text, token ids, or a list of either")
  return tuple(prompts)


def _turns(value: Any) -> tuple[Turn, ...]:
  """Reads the messages of a conversation that ends before an answer."""
  if value is None:
    raise _missing("messages")
  if not isinstance(value, list) or not value:
    raise _invalid("messages", "must be a list of at least one message")
  turns = []
  for index, message in enumerate(value):
    name = f"messages[{index}]"
    if not isinstance(message, dict):
      raise _invalid(name, "must be an object with role and content")
    fields = _Fields(message)
    role = fields.take("role")
    if not isinstance(role, str) or role not in _ROLES:
      raise _invalid(f"{name}.role", f"must be one of {', '.join(_ROLES)}")
    text = _content(fields.take("content"), f"{name}.content")
    fields.refuse_rest(_NEUTRAL_OF_MESSAGES, f"{name}.")
    turns.append(Turn(_ROLES[role], text))
  if turns[-1].role != "user":
    raise _invalid(
      "messages", f"must end with a user's message, not {value[-1]['role']}'s"
    )
  return tuple(turns)


def _content(value: Any, name: str) -> str:
  """Reads the content of a message: a text, or parts that are texts."""
  if isinstance(value, str):
    return _text(name, value)
  if not isinstance(value, list) or not value:
    raise _invalid(name, "must be a text or a list of text parts")
  texts = []
  for part in value:
    if not isinstance(part, dict) or set(part) != {"type", "text"}:
      raise _invalid(name, "has a part that is not of the type text")
    if part["type"] != "text" or not isinstance(part["text"], str):
      raise _invalid(name, "has a part that is not of the type text")
    texts.append(_text(name, part["text"]))
  return "".join(texts)


def _stop(value: Any) -> tuple[str, ...]:
  """Reads the stop strings."""
  if value is None:
    return ()
  values = [value] if isinstance(value, str) else value
  if (
    not isinstance(values, list)
    or len(values) > _MAX_STOPS
    or not all(isinstance(v, str) and v for v in values)
  ):
    raise _invalid(
      "stop", f"must be a text or a list of at most {_MAX_STOPS} texts"
    )
  return tuple(_text("stop", v) for v in values)


def _text(name: str, value: str) -> str:
  if not streams.is_utf8(value) or "\0" in value:
    raise _invalid(name, "has NUL characters or is not valid Unicode")
  return value


def _missing(name: str) -> ApiError:
  return ApiError(
    400, f"{name} is missing.", param=name, code="missing_parameter"
  )


def _invalid(name: str, problem: str) -> ApiError:
  return ApiError(
    400, f"{name} {problem}.", param=name, code="invalid_parameter"
  )


def _shorten(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f"{text[:60]}…"


def finite(logp: float) -> float:
  """Returns a log-probability that JSON can express."""
  return logp if math.isfinite(logp) else -9999.0
