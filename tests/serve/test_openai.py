"""The `openai` client talks to the server over a socket."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from instructgpt_jax.serve import app
from tests.chat import toy
from tests.chat.toy import user
from tests.interop import tiny

openai = tiny.library("openai")
uvicorn = tiny.library("uvicorn")


@pytest.fixture(scope="module")
def address(session):
  """Returns the address of a server in a thread."""
  service = app.Service(session, "toy", max_batch=4)
  config = uvicorn.Config(
    app.make_app(service), port=0, log_level="warning", lifespan="on"
  )
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run)
  thread.start()
  while not server.started:
    assert thread.is_alive()
    time.sleep(0.01)
  (listener,) = server.servers
  port = listener.sockets[0].getsockname()[1]
  yield f"http://127.0.0.1:{port}/v1"
  server.should_exit = True
  thread.join()
  assert service.closed


@pytest.fixture(scope="module")
def client(address):
  with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
    yield client


def test_models(client):
  assert [model.id for model in client.models.list()] == ["toy"]
  assert client.models.retrieve("toy").id == "toy"
  with pytest.raises(openai.NotFoundError):
    client.models.retrieve("gpt-4")


def test_chat_and_its_stream(client, policy):
  session = toy.make_session(policy, seed=2)
  expected = "".join(session.stream(user("the fox")))
  values = dict(
    model="toy", messages=[{"role": "user", "content": "the fox"}], seed=2
  )
  whole = client.chat.completions.create(
    **values, logprobs=True, top_logprobs=2
  )
  (choice,) = whole.choices
  assert choice.message.content == expected
  assert len(choice.logprobs.content) == whole.usage.completion_tokens
  assert len(choice.logprobs.content[0].top_logprobs) == 2
  stream = client.chat.completions.create(
    **values, stream=True, stream_options={"include_usage": True}
  )
  *chunks, last = stream
  assert last.usage == whole.usage
  text = "".join(c.choices[0].delta.content or "" for c in chunks)
  assert text == expected
  assert chunks[-1].choices[0].finish_reason == choice.finish_reason


def test_completions_and_their_stream(client):
  values = dict(
    model="toy",
    prompt=["the fox", "a bird"],
    max_tokens=6,
    temperature=0,
    logprobs=2,
    echo=True,
  )
  whole = client.completions.create(**values)
  texts = ["", ""]
  for chunk in client.completions.create(**values, stream=True):
    for choice in chunk.choices:
      texts[choice.index] += choice.text
  assert texts == [choice.text for choice in whole.choices]
  scores = whole.choices[0].logprobs
  assert scores.token_logprobs[0] is None
  assert len(scores.tokens) == len(scores.text_offset) > 6


def test_errors(client):
  with pytest.raises(openai.BadRequestError) as error:
    client.completions.create(model="toy", prompt="x", logit_bias={"1": 5})
  assert error.value.code == "unsupported_parameter"
  assert error.value.param == "logit_bias"
  with pytest.raises(openai.BadRequestError) as error:
    client.completions.create(model="toy", prompt="fox " * 50, stream=True)
  assert error.value.code == "context_length_exceeded"


def test_a_client_that_leaves_does_not_block_others(client, session):
  """The answers of a closed stream end, and the next request is answered."""
  values = dict(model="toy", prompt="the fox", max_tokens=20, n=64)
  stream = client.completions.create(**values, stream=True)
  next(iter(stream))
  stream.close()
  answer = client.completions.create(model="toy", prompt="a", max_tokens=1)
  assert answer.usage.completion_tokens == 1


def test_many_clients_at_once(client):
  def ask(seed):
    return (
      client.completions.create(model="toy", prompt="the", seed=seed)
      .choices[0]
      .text
    )

  alone = [ask(seed) for seed in range(8)]
  with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(ask, range(8))) == alone
