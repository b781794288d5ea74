"""A judge behind an OpenAI-compatible URL, asked over chat/completions."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation.pair_judges import Verdict, parse_reply
from instructgpt_jax.evaluation.reply_log import ReplyLog

REFUSED = "refused by the server"
_PATH = "/chat/completions"
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_REFUSED = (400, 413, 422)  # of one question, such as one that is too long
_LOCAL = ("localhost", "127.0.0.1", "::1")
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds
_LARGEST_REPLY = 4 << 20  # bytes
_SHOWN = 200  # characters of a server's error


class ServerJudge:
  """Model of a server; it writes its verdict.

  Redirects are not followed, and a server on this host is not asked through a
  proxy, so a key reaches no other server.

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
    replies: ReplyLog | None = None,
    sleep: Callable[[float], object] | None = None,
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
      replies: replies of an earlier run, which are not asked for again; gets
        those of this run.
      sleep: waits between two tries; None ends with the first failure of
        another request.

    Raises:
      UserError: `bad_url`; `no_key`, the variable is not set; or
        `insecure_key`, a key would be sent to another host without TLS.
    """
    self._address = url.rstrip("/") + _PATH
    self._url, self._timeout, self._retries = url, timeout, retries
    self._model, self._parallel = model, parallel
    self._max_tokens, self._replies = max_tokens, replies
    self._stopped, self._answered = threading.Event(), False
    self._sleep = sleep or self._stopped.wait
    self.name = f"{model} at {url}"
    parts = _parse_url(url)
    is_local = parts.hostname in _LOCAL
    self._headers, self._key = {"Content-Type": "application/json"}, ""
    if key_env:
      self._key = _read_key(key_env, is_local or parts.scheme == "https")
      self._headers["Authorization"] = f"Bearer {self._key}"
    proxies = [urllib.request.ProxyHandler({})] if is_local else []
    self._opener = urllib.request.build_opener(_NoRedirects, *proxies)

  def __call__(self, questions: Sequence[str]) -> list[Verdict]:
    """Returns a verdict on each question.

    A question that the server refuses, such as one beyond the model's context,
    has none.

    Raises:
      UserError: `judge_server`, the server refuses all requests, or does not
        answer one after all tries.
    """
    self._stopped.clear()
    with concurrent.futures.ThreadPoolExecutor(self._parallel) as pool:
      futures = [pool.submit(self._ask, question) for question in questions]
      try:
        for future in concurrent.futures.as_completed(futures):
          if not isinstance(future.exception(), _StoppedError):
            future.result()  # Raises the first error.
      except BaseException:
        self._stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    verdicts = [future.result() for future in futures]
    refused = [v.reply for v in verdicts if v.problem == REFUSED]
    self._answered |= len(refused) < len(verdicts)
    if refused and not self._answered:
      self._fail(refused[0])
    return verdicts

  def _ask(self, question: str) -> Verdict:
    body = json.dumps(
      {
        "model": self._model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": self._max_tokens,
      }
    )
    request = f"{self._address}\n{body}"
    reply = None
    if self._replies is not None:
      reply = self._replies.get(request)
    if reply is None:
      try:
        reply = _reply_text(self._send(body.encode()), self._url)
      except _RefusedError as error:
        return Verdict(None, reply=str(error), problem=REFUSED)
      except UserError:
        self._stopped.set()
        raise
      if self._replies is not None:
        self._replies.add(request, reply)
    return parse_reply(reply)

  def _send(self, body: bytes) -> bytes:
    """Returns the server's answer to a request.

    Raises:
      UserError: `judge_server`.
      _RefusedError: the server refuses this request.
      _StoppedError: another request has failed.
    """
    problem = delay = ""
    for attempt in range(self._retries + 1):
      if attempt:
        self._sleep(_wait_time(attempt - 1, delay))
      if self._stopped.is_set():
        raise _StoppedError
      try:
        return self._post(body)
      except urllib.error.HTTPError as error:
        with error:
          problem = f"answers {error.code} {error.reason}: {self._text(error)}"
          delay = error.headers.get("Retry-After", "")
        if error.code in _REFUSED:
          raise _RefusedError(problem) from error
        if error.code not in _RETRIED:
          self._fail(problem)
      except (OSError, http.client.HTTPException) as error:
        problem = f"cannot be reached: {getattr(error, 'reason', error)}"
        delay = ""
    self._fail(f"{problem} (tried {self._retries + 1} times)")

  def _post(self, body: bytes) -> bytes:
    request = urllib.request.Request(
      self._address, body, self._headers, method="POST"
    )
    with self._opener.open(request, timeout=self._timeout) as response:
      return response.read(_LARGEST_REPLY)

  def _text(self, error: urllib.error.HTTPError) -> str:
    """Returns the beginning of a server's error, without the key."""
    try:
      text = error.read(_LARGEST_REPLY).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
      return ""
    if self._key:
      text = text.replace(self._key, "[key]")
    return " ".join(text.split())[:_SHOWN]

  def _fail(self, problem: str) -> NoReturn:
    raise UserError(
      problem,
      file=self._url,
      field="--judge",
      fix="check the URL, --judge_model and --judge_key_env, and that the"
      " server runs",
      code="judge_server",
    )


class _RefusedError(Exception):
  """The server refuses one request; the text says why."""


class _StoppedError(Exception):
  """The error of another request ends this one."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
  """Leaves a redirect to be an error."""

  def redirect_request(self, *arguments: Any, **options: Any) -> None:
    return None


def is_url(judge: str) -> bool:
  """Returns whether a judge is named by a URL."""
  return judge.lower().startswith(("http://", "https://"))


def _parse_url(url: str) -> urllib.parse.SplitResult:
  """Splits a base URL, and refuses one of another form."""
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
  return parts


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
