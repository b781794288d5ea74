"""The HTTP application: reads requests, waits for answers, writes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from instructgpt_jax.chat.engine import ChatSession
from instructgpt_jax.chat.row_sampler import Row, Scores
from instructgpt_jax.errors import UserError
from instructgpt_jax.serve import protocol
from instructgpt_jax.serve.answer import Answer, Delta
from instructgpt_jax.serve.batcher import MAX_WAITING, Batcher, Job
from instructgpt_jax.serve.echo import echoed
from instructgpt_jax.serve.protocol import ApiError, Request
from instructgpt_jax.serve.responses import Usage, Writer
from instructgpt_jax.serve.token_text import TokenTexts

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MAX_BODY = 1 << 25  # bytes
_CLOSE_SECONDS = 10
_CONTEXT = 8  # tokens of a prompt that decide how the text after it begins


class _Prompt(NamedTuple):
  ids: np.ndarray
  text: str | None  # as the client sent it; None for token ids


class Service:
  """Answers requests with one model.

  Attributes:
    name: the model's name.
    started: whether decoding has started.
    closed: whether it has ended after `stop`.
  """

  def __init__(self, session: ChatSession, name: str, max_batch: int):
    self.name, self.started, self.closed = name, False, False
    self._session = session
    self._created = int(time.time())
    self._texts = TokenTexts(session.tokenizer)
    self._batcher = Batcher(session, max_batch)

  def start(self) -> None:
    """Starts decoding."""
    self.started = True
    self._batcher.start()

  def stop(self) -> None:
    """Stops decoding, if it has started."""
    if self.started:
      self.closed = self._batcher.close(_CLOSE_SECONDS)

  def describe(self) -> dict[str, Any]:
    """Returns the object of the model."""
    return {
      "id": self.name,
      "object": "model",
      "created": self._created,
      "owned_by": "instructgpt_jax",
    }

  def check_model(self, name: str) -> None:
    """Refuses any other model.

    Raises:
      ApiError: the name is not this model's.
    """
    if name != self.name:
      raise ApiError(
        404,
        f"The model {name!r} does not exist; this server has {self.name!r}.",
        param="model",
        code="model_not_found",
      )

  def begin(self, request: Request) -> _Exchange:
    """Queues the answers to a request.

    Raises:
      ApiError: a prompt is invalid or too long, or too many requests wait.
    """
    self.check_model(request.model)
    if request.turns:
      prompts = [_Prompt(self._encode_chat(request), None)]
    else:
      prompts = [self._encode(prompt) for prompt in request.prompts]
    exchange = _Exchange(request, self._session, self._texts, prompts)
    if not self._batcher.submit(exchange.jobs):
      raise ApiError(
        429,
        f"More than {MAX_WAITING} answers wait; try again later.",
        code="too_many_requests",
      )
    return exchange

  def _encode(self, prompt: str | tuple[int, ...]) -> _Prompt:
    tokenizer = self._session.tokenizer
    if isinstance(prompt, str):
      ids = [*tokenizer.begin, *tokenizer.encode(prompt)]
      return _Prompt(np.array(ids, np.int32), prompt)
    if not all(0 <= i < tokenizer.vocab_size for i in prompt):
      raise ApiError(
        400,
        f"prompt has a token id outside of 0 to {tokenizer.vocab_size - 1}.",
        param="prompt",
        code="invalid_parameter",
      )
    return _Prompt(np.array(prompt, np.int32), None)

  def _encode_chat(self, request: Request) -> np.ndarray:
    try:
      return self._session.encode(request.turns)
    except UserError as error:
      raise ApiError(
        400,
        f"The chat template refuses the messages: {error.problem}.",
        param="messages",
        code=error.code or "template_refuses",
      ) from error


class _Exchange:
  """A request whose answers are being sampled."""

  def __init__(
    self,
    request: Request,
    session: ChatSession,
    texts: TokenTexts,
    prompts: Sequence[_Prompt],
  ):
    self._request, self._prompts = request, prompts
    self._session = session
    self._writer = Writer(request, texts)
    self._events: asyncio.Queue[Any] = asyncio.Queue()
    self._loop = asyncio.get_running_loop()
    seed = secrets.randbits(32) if request.seed is None else request.seed
    self.jobs = [
      self._job(index, prompt, seed)
      for index, prompt in enumerate(
        p for p in prompts for _ in range(request.n)
      )
    ]

  def _job(self, index: int, prompt: _Prompt, seed: int) -> Job:
    request, session = self._request, self._session
    max_tokens = self._max_tokens(len(prompt.ids))
    tokenizer, chat = session.tokenizer, bool(request.turns)

    def deliver(event: Any) -> None:
      self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    return Job(
      row=Row(prompt.ids, seed, index, request.temperature, request.top_p),
      max_tokens=max_tokens,
      answer=Answer(
        tokenizer,
        max_tokens=max_tokens,
        stop=request.stop,
        lead=tokenizer.reply_lead if chat else "",
        tail=tokenizer.reply_tail if chat else "",
        context=None if chat else prompt.ids[-_CONTEXT:].tolist(),
      ),
      deliver=deliver,
      top_logprobs=request.logprobs or 0,
      score_prompt=request.echo and request.logprobs is not None,
    )

  def _max_tokens(self, length: int) -> int:
    """Returns the longest answer to a prompt of some tokens."""
    limit, param = self._session.max_seq_len, "prompt"
    if self._request.turns:
      param = "messages"
    if not length:
      raise ApiError(
        400, f"{param} has no tokens.", param=param, code="empty_prompt"
      )
    asked = self._request.max_tokens
    max_tokens = asked
    if max_tokens is None:
      max_tokens = max(1, min(self._session.max_tokens, limit - length))
    if length + max_tokens > limit:
      answer = "" if asked is None else f" and {asked} for the answer"
      raise ApiError(
        400,
        f"The model's context is {limit} tokens, and {length} tokens in"
        f" {param}{answer} do not fit.",
        param=param,
        code="context_length_exceeded",
      )
    return max_tokens

  @property
  def streams(self) -> bool:
    """Returns whether the answers are sent while they are sampled."""
    return self._request.stream

  async def respond(self) -> dict[str, Any]:
    """Waits for all answers, and returns the response."""
    parts: list[list[Delta]] = [[] for _ in self.jobs]
    async with contextlib.aclosing(self._deltas()) as deltas:
      async for index, delta in deltas:
        parts[index].append(delta)
    answers = [
      Delta(
        "".join(d.text for d in part),
        tuple(token for d in part for token in d.tokens),
        part[-1].finish_reason,
      )
      for part in parts
    ]
    return self._writer.response(answers, self._usage())

  async def stream(self) -> AsyncIterator[str]:
    """Yields the lines of a stream of events."""
    try:
      if self._request.turns:
        for index in range(len(self.jobs)):
          yield _event(self._writer.first_chunk(index))
      async with contextlib.aclosing(self._deltas()) as deltas:
        async for index, delta in deltas:
          yield _event(self._writer.chunk(index, delta))
      if self._request.include_usage:
        yield _event(self._writer.last_chunk(self._usage()))
    except ApiError as error:
      yield _event(error.body())
      return
    finally:
      self.cancel()
    yield "data: [DONE]\n\n"

  def cancel(self) -> None:
    """Ends answers that nobody waits for."""
    for job in self.jobs:
      job.cancelled = True

  async def _deltas(self) -> AsyncIterator[tuple[int, Delta]]:
    """Yields (number of the answer, new text) until all answers have ended."""
    unfinished = len(self.jobs)
    # Text of a prompt that precedes the answer's.
    ahead: dict[int, int] = {}
    if self._request.echo:
      for index, job in enumerate(self.jobs):
        if not job.score_prompt:
          delta = self._echo(index, None)
          ahead[index] = len(delta.text)
          yield index, delta
    while unfinished:
      index, event = await self._events.get()
      if isinstance(event, Scores):
        delta = self._echo(index, event)
        ahead[index] = len(delta.text)
      elif isinstance(event, Delta):
        delta = _moved(event, ahead.get(index, 0))
        if self._request.logprobs is None:
          delta = delta._replace(tokens=())
      else:
        raise _failure(event)
      unfinished -= delta.finish_reason is not None
      if delta.text or delta.tokens or delta.finish_reason:
        yield index, delta

  def _echo(self, index: int, scores: Scores | None) -> Delta:
    prompt = self._prompts[index // self._request.n]
    return echoed(
      self._session.tokenizer,
      prompt.ids,
      prompt.text,
      scores,
      self._request.logprobs or 0,
    )

  def _usage(self) -> Usage:
    return Usage(
      sum(len(prompt.ids) for prompt in self._prompts),
      sum(job.answer.count for job in self.jobs),
    )


def _moved(delta: Delta, offset: int) -> Delta:
  """Returns a delta whose text follows some characters."""
  tokens = (t._replace(offset=t.offset + offset) for t in delta.tokens)
  return delta._replace(tokens=tuple(tokens))


def _failure(error: Exception) -> ApiError:
  """Returns the error of an answer that could not be sampled."""
  if isinstance(error, UserError):
    return ApiError(
      500, f"The model failed: {error.problem}.", code=error.code or "failed"
    )
  return ApiError(
    500, "The model failed; the server's log says why.", code="failed"
  )


def _event(value: Any) -> str:
  return f"data: {_dump(value)}\n\n"


def _dump(value: Any) -> str:
  return json.dumps(value, allow_nan=False, separators=(",", ":"))


def make_app(service: Service, *, any_host: bool = False) -> Any:
  """Returns the ASGI application.

  Args:
    service: answers requests.
    any_host: whether requests may name any host. A page in a browser can reach
      a loopback address under a name of its own, so only loopback names are
      accepted otherwise.
  """
  from starlette.applications import Starlette  # pyright: ignore[reportMissingImports]
  from starlette.exceptions import HTTPException  # pyright: ignore[reportMissingImports]
  from starlette.responses import Response, StreamingResponse  # pyright: ignore[reportMissingImports]
  from starlette.routing import Route  # pyright: ignore[reportMissingImports]

  def reply(value: Any, status: int = 200) -> Response:
    return Response(
      _dump(value), status_code=status, media_type="application/json"
    )

  def failed(error: ApiError) -> Response:
    return reply(error.body(), error.status)

  def endpoint(handle: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run(request: Any) -> Response:
      try:
        if not any_host:
          _check_host(request)
        return await handle(request)
      except ApiError as error:
        return failed(error)

    return run

  async def models(_: Any) -> Response:
    return reply({"object": "list", "data": [service.describe()]})

  async def model(request: Any) -> Response:
    service.check_model(request.path_params["name"])
    return reply(service.describe())

  def answers(parse: Callable[[Any], Request]) -> Any:
    async def handle(request: Any) -> Response:
      exchange = service.begin(parse(await _read_json(request)))
      if exchange.streams:
        return StreamingResponse(
          exchange.stream(),
          media_type="text/event-stream",
          headers={"Cache-Control": "no-cache"},
        )
      return reply(await _until_disconnected(request, exchange))

    return endpoint(handle)

  async def http_error(_: Any, error: HTTPException) -> Response:
    messages = {
      404: "There is no such path; the server has /v1/models, /v1/completions"
      " and /v1/chat/completions.",
      405: "This path has no such method.",
    }
    message = messages.get(error.status_code, error.detail)
    return failed(ApiError(error.status_code, message, code="bad_request"))

  @contextlib.asynccontextmanager
  async def lifespan(_: Any) -> AsyncIterator[None]:
    service.start()
    yield
    service.stop()

  return Starlette(
    routes=[
      Route("/v1/models", endpoint(models)),
      Route("/v1/models/{name:path}", endpoint(model)),
      Route(
        "/v1/completions", answers(protocol.parse_completion), methods=["POST"]
      ),
      Route(
        "/v1/chat/completions", answers(protocol.parse_chat), methods=["POST"]
      ),
    ],
    exception_handlers={HTTPException: http_error},
    lifespan=lifespan,
  )


def _check_host(request: Any) -> None:
  if request.url.hostname not in LOOPBACK:
    raise ApiError(
      403,
      "The Host header must name a loopback address; start the server with"
      " --allow_remote to accept others.",
      code="remote_host",
    )


async def _read_json(request: Any) -> dict[str, Any]:
  """Reads the body of a request.

  Raises:
    ApiError: it is too long, or not a JSON object.
  """
  kind = request.headers.get("content-type", "").partition(";")[0].strip()
  if kind.lower() != "application/json":
    raise ApiError(
      415,
      "The Content-Type header must be application/json.",
      code="bad_content_type",
    )
  body = bytearray()
  async for part in request.stream():
    body += part
    if len(body) > _MAX_BODY:
      raise ApiError(
        413, f"The body has more than {_MAX_BODY} bytes.", code="too_long"
      )
  return protocol.parse_json(bytes(body))


async def _until_disconnected(
  request: Any, exchange: _Exchange
) -> dict[str, Any]:
  """Waits for a response; ends its answers if the client goes away."""

  async def disconnected() -> None:
    while (await request.receive())["type"] != "http.disconnect":
      pass

  response = asyncio.ensure_future(exchange.respond())
  watch = asyncio.ensure_future(disconnected())
  try:
    await asyncio.wait((response, watch), return_when=asyncio.FIRST_COMPLETED)
    if not response.done():
      raise ApiError(499, "The client has gone away.", code="disconnected")
    return response.result()
  finally:
    exchange.cancel()
    response.cancel()
    watch.cancel()
