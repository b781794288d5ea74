"""A judge behind an OpenAI-compatible URL, asked over chat/completions."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.pair_judges import Verdict, parse_reply

_PATH = "/chat/completions"
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds
_LARGEST_REPLY = 4 << 20  # bytes
_SHOWN = 200  # characters of a server's error


class ServerJudge:
  """Model of a server; it writes its verdict.

  Redirects are not followed, so a key reaches no other server.

  Attributes:
    name: the model and the URL.
  """

  def __init__(
    self,
    url: str,
    model: str,
    *,
    key_env: str = "",
    timeout: float = 60.0,
    retries: int = 4,
    parallel: int = 4,
    max_tokens: int = 16,
    sleep: Callable[[float], None] = time.sleep,
  ):
    """Makes a judge; asks nothing yet.

    Args:
      url: base URL of the API, such as http://localhost:8000/v1.
      model: name of the model.
      key_env: environment variable with the API key; "" sends none.
      timeout: seconds without an answer after which a request has failed.
      retries: further tries of a request that failed for a passing reason.
      parallel: requests at a time.
      max_tokens: most tokens of a reply.
      sleep: waits between two tries.

    Raises:
      UserError: `bad_url`; `no_key`, the variable is not set; or
        `insecure_key`, a key would be sent to another host without TLS.
    """
    self._url, self._timeout, self._retries = url, timeout, retries
    self._model, self._parallel, self._sleep = model, parallel, sleep
    self._max_tokens = max_tokens
    self.name = f"{model} at {url}"
    headers = {"Content-Type": "application/json"}
    is_private = _check_url(url)
    if key_env:
      headers["Authorization"] = f"Bearer {_read_key(key_env, is_private)}"
    self._headers = headers
    self._opener = urllib.request.build_opener(_NoRedirects)

  def __call__(self, questions: Sequence[str]) -> list[Verdict]:
    """Returns a verdict on each question.

    Raises:
      UserError: `judge_server`, the server refuses a request, or does not
        answer after all tries.
    """
    with concurrent.futures.ThreadPoolExecutor(self._parallel) as pool:
      futures = [pool.submit(self._ask, question) for question in questions]
      try:
        return [parse_reply(future.result()) for future in futures]
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise

  def _ask(self, question: str) -> str:
    body = json.dumps(
      {
        "model": self._model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": self._max_tokens,
      }
    ).encode()
    for attempt in range(self._retries + 1):
      try:
        return _reply_text(self._post(body), self._url)
      except urllib.error.HTTPError as error:
        with error:
          problem = f"answers {error.code} {error.reason}: {_shown(error)}"
          delay = error.headers.get("Retry-After", "")
        if error.code not in _RETRIED:
          self._fail(problem)
      except (OSError, http.client.HTTPException) as error:
        problem = f"cannot be reached: {getattr(error, 'reason', error)}"
        delay = ""
      if attempt < self._retries:
        self._sleep(_wait_time(attempt, delay))
    self._fail(f"{problem} (tried {self._retries + 1} times)")

  def _post(self, body: bytes) -> bytes:
    request = urllib.request.Request(
      self._url.rstrip("/") + _PATH, body, self._headers, method="POST"
    )
    with self._opener.open(request, timeout=self._timeout) as response:
      return response.read(_LARGEST_REPLY)

  def _fail(self, problem: str) -> NoReturn:
    raise UserError(
      problem,
      file=self._url,
      field="--judge",
      fix="check the URL, --judge_model and --judge_key_env, and that the"
      " server runs",
      code="judge_server",
    )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
  """Leaves a redirect to be an error."""

  def redirect_request(self, *arguments: Any, **options: Any) -> None:
    return None


def is_url(judge: str) -> bool:
  """Returns whether a judge is named by a URL."""
  return judge.lower().startswith(("http://", "https://"))


def _check_url(url: str) -> bool:
  """Refuses a URL of another form; returns whether a key is safe there."""
  try:
    parts = urllib.parse.urlsplit(url)
    usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
  except ValueError:
    usable = False
  if not usable or parts.username or parts.password or parts.query:
    raise UserError(
      "is no base URL of an API",
      field="--judge",
      fix="write it as http://HOST:PORT/v1, and keys in --judge_key_env",
      code="bad_url",
    )
  is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
  return parts.scheme == "https" or is_local


def _read_key(name: str, is_private: bool) -> str:
  key = os.environ.get(name, "").strip()
  if not key or not key.isascii() or not key.isprintable():
    raise UserError(
      f"the environment variable {name} holds no key",
      field="--judge_key_env",
      fix=f"set {name}, or leave --judge_key_env out",
      code="no_key",
    )
  if not is_private:
    raise UserError(
      "the key would be sent without encryption",
      field="--judge",
      fix="give an https URL, or leave --judge_key_env out",
      code="insecure_key",
    )
  return key


def _wait_time(attempt: int, retry_after: str) -> float:
  """Returns the seconds to wait before the next try."""
  if retry_after.isdecimal():
    return min(float(retry_after), _LONGEST_WAIT)
  return min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)


def _shown(error: urllib.error.HTTPError) -> str:
  try:
    text = error.read(_LARGEST_REPLY).decode("utf-8", "replace")
  except (OSError, http.client.HTTPException):
    return ""
  return " ".join(text.split())[:_SHOWN]


def _reply_text(content: bytes, url: str) -> str:
  """Returns the text of the first choice; a refusal has none."""
  try:
    value: Mapping[str, Any] = json.loads(content)
    message = value["choices"][0]["message"]
    text = message.get("content")
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise UserError(
      "answers with something other than a chat completion",
      file=url,
      field="--judge",
      fix=f"give the base URL, to which {_PATH} is added",
      code="judge_server",
    ) from error
  return text if isinstance(text, str) else ""
