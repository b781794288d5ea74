"""The HTTP interface: answers, log-probabilities, errors."""

from __future__ import annotations

import functools
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from instructgpt_jax.serve import app
from tests.chat import toy
from tests.chat.toy import user
from tests.interop import tiny

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def complete(client, prompt="the fox", **values):
  return client.post(
    COMPLETIONS, json={"model": "toy", "prompt": prompt, **values}
  )


def chat(client, text="the fox", **values):
  messages = [{"role": "user", "content": text}]
  return client.post(
    CHAT, json={"model": "toy", "messages": messages, **values}
  )


def body(response):
  assert response.status_code == 200, response.text
  return response.json()


def events(response):
  """Returns the values of a stream, which must end as OpenAI's."""
  assert response.status_code == 200, response.text
  assert response.headers["content-type"].startswith("text/event-stream")
  *lines, last = response.text.strip().split("\n\n")
  assert last == "data: [DONE]"
  return [json.loads(line.removeprefix("data: ")) for line in lines]


def encode(policy, text):
  tokenizer = policy[2]
  return [*tokenizer.begin, *tokenizer.encode(text)]


def ids_of(policy, names):
  """Returns the ids of named tokens."""
  tokenizer = policy[2]
  ids = {}
  for i in range(tokenizer.vocab_size):
    ids[" " + tokenizer.decode([i]) if tokenizer.decode([i]) else i] = i
    ids[tokenizer.special_token(i)] = i
  return [ids[name] for name in names]


@functools.cache
def _forward(model):
  return jax.jit(model.apply)


def full_pass(policy, ids):
  """Returns [T, V] log-probabilities, by the model's whole forward pass."""
  model, params, _ = policy
  tokens = np.zeros((1, 32), np.int32)
  segments = np.zeros_like(tokens)
  tokens[0, : len(ids)], segments[0, : len(ids)] = ids, 1
  positions = np.arange(32, dtype=np.int32)[None] * segments
  logits = _forward(model)({"params": params}, tokens, segments, positions)
  return np.asarray(jax.nn.log_softmax(logits[0, : len(ids)]))


def test_chat_has_the_tokens_of_a_chat_session(client, policy):
  for seed in range(3):
    session = toy.make_session(policy, seed=seed, temperature=0.7, top_p=0.9)
    expected = "".join(session.stream(user("the fox")))
    answer = body(chat(client, seed=seed, temperature=0.7, top_p=0.9))
    (choice,) = answer["choices"]
    assert choice["message"] == {
      "role": "assistant",
      "content": expected,
      "refusal": None,
    }
    count = len(list(session.sample_tokens(session.encode(user("the fox")))))
    ended = choice["finish_reason"] == "stop"
    assert ended == (count < session.max_tokens)
    assert answer["usage"] == {
      "prompt_tokens": len(session.encode(user("the fox"))),
      "completion_tokens": count + ended,
      "total_tokens": len(session.encode(user("the fox"))) + count + ended,
    }


def test_a_completion_continues_the_prompt(client, policy):
  """Greedy tokens are those that the full pass finds one after another."""
  ids = encode(policy, "the fox")
  for _ in range(6):
    ids.append(int(full_pass(policy, ids)[-1].argmax()))
  expected = ids[-6:]
  answer = body(complete(client, max_tokens=6, temperature=0, logprobs=0))
  (choice,) = answer["choices"]
  tokenizer = policy[2]
  whole = tokenizer.decode(ids)
  assert choice["text"] == whole.removeprefix(tokenizer.decode(ids[:-6]))
  assert ids_of(policy, choice["logprobs"]["tokens"]) == expected
  assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("as_ids", [False, True])
def test_log_probabilities_equal_those_of_a_full_pass(client, policy, as_ids):
  text = "the fox saw a bird and sang"
  prompt = encode(policy, text)
  answer = body(
    complete(
      client,
      prompt if as_ids else text,
      max_tokens=4,
      temperature=1.5,
      seed=5,
      logprobs=3,
      echo=True,
    )
  )
  (choice,) = answer["choices"]
  scores = choice["logprobs"]
  assert choice["text"].startswith(text)
  ids = ids_of(policy, scores["tokens"])
  assert ids[: len(prompt)] == prompt
  assert len(ids) - len(prompt) == answer["usage"]["completion_tokens"]
  expected = full_pass(policy, ids)
  assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
  for i in range(1, len(ids)):
    row = expected[i - 1]
    actual = scores["token_logprobs"][i]
    np.testing.assert_allclose(actual, row[ids[i]], atol=1e-4)
    top = scores["top_logprobs"][i]
    assert 3 <= len(top) <= 4
    best = sorted(top.values(), reverse=True)[:3]
    np.testing.assert_allclose(best, np.sort(row)[::-1][:3], atol=1e-4)
    assert top[scores["tokens"][i]] == actual
    offset = scores["text_offset"][i]
    token = scores["tokens"][i]
    if policy[2].decode([ids[i]]):
      assert choice["text"][offset:].startswith(token)


def test_prompts_can_be_scored_without_an_answer(client, policy):
  prompts = ["the fox saw", "a bird and sang for two old owls"]
  answer = body(complete(client, prompts, max_tokens=0, echo=True, logprobs=1))
  for prompt, choice in zip(prompts, answer["choices"], strict=True):
    ids = encode(policy, prompt)
    expected = full_pass(policy, ids)[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(
      choice["logprobs"]["token_logprobs"][1:], expected, atol=1e-4
    )
    assert choice["text"] == prompt and choice["finish_reason"] == "length"
  assert answer["usage"]["completion_tokens"] == 0


def test_log_probabilities_of_a_chat(client):
  answer = body(chat(client, logprobs=True, top_logprobs=2, seed=1))
  (choice,) = answer["choices"]
  content = choice["logprobs"]["content"]
  assert len(content) == answer["usage"]["completion_tokens"]
  text = b"".join(bytes(t["bytes"] or []) for t in content)
  # This tokenizer writes no space after a line break.
  text = text.decode().replace("\n ", "\n")
  assert text == " " + choice["message"]["content"]
  for token in content:
    first, second = (t["logprob"] for t in token["top_logprobs"])
    assert first >= second and first >= token["logprob"]
  assert body(chat(client, seed=1))["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("echo", [False, True])
def test_streamed_completions_equal_others(client, echo):
  values = dict(n=2, seed=4, logprobs=2, max_tokens=8, echo=echo, stop=["e a"])
  whole = body(complete(client, ["the fox", "owls near"], **values))
  chunks = events(
    complete(
      client,
      ["the fox", "owls near"],
      stream=True,
      stream_options={"include_usage": True},
      **values,
    )
  )
  assert chunks[-1]["choices"] == []
  assert chunks[-1]["usage"] == whole["usage"]
  assert all(chunk["usage"] is None for chunk in chunks[:-1])
  assert len({chunk["id"] for chunk in chunks}) == 1
  assert len(whole["choices"]) == 4
  for choice in whole["choices"]:
    parts = [
      part
      for chunk in chunks
      for part in chunk["choices"]
      if part["index"] == choice["index"]
    ]
    assert parts[-1]["finish_reason"] and not parts[0]["finish_reason"]
    assert "".join(p["text"] for p in parts) == choice["text"]
    assert parts[-1]["finish_reason"] == choice["finish_reason"]
    for key, value in choice["logprobs"].items():
      assert [x for p in parts for x in p["logprobs"][key]] == value, key


def test_streamed_chats_equal_others(client):
  values = dict(seed=8, n=2, logprobs=True, top_logprobs=1)
  whole = body(chat(client, **values))
  chunks = events(chat(client, stream=True, **values))
  assert all("usage" not in chunk for chunk in chunks)
  assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
  for choice in whole["choices"]:
    parts = [
      p for c in chunks for p in c["choices"] if p["index"] == choice["index"]
    ]
    assert parts[0]["delta"]["role"] == "assistant"
    text = "".join(p["delta"].get("content", "") for p in parts)
    assert text == choice["message"]["content"]
    assert parts[-1]["finish_reason"] == choice["finish_reason"]
    scores = [
      x for p in parts if p["logprobs"] for x in p["logprobs"]["content"]
    ]
    assert scores == choice["logprobs"]["content"]


def test_concurrent_requests_get_the_answers_that_they_get_alone(client):
  requests = [
    dict(
      prompt=" ".join(toy.WORDS[: 1 + i % 5]),
      seed=i,
      temperature=(0, 0.5, 1, 1.5)[i % 4],
      top_p=(1, 0.8)[i % 2],
      max_tokens=3 + i % 6,
      logprobs=(None, 2)[i // 6],
    )
    for i in range(12)
  ]

  def send(values):
    return body(complete(client, **values))["choices"]

  alone = [send(values) for values in requests]
  with ThreadPoolExecutor(len(requests)) as pool:
    together = list(pool.map(send, requests))
  assert together == alone
  assert len({choices[0]["text"] for choices in alone}) > 6


def test_waiting_requests_are_decoded_together(session, client, monkeypatch):
  sizes = []
  sample = session.sampler.sample

  def count(rows, **options):
    sizes.append(len(rows))
    return sample(rows, **options)

  monkeypatch.setattr(session.sampler, "sample", count)
  answer = body(complete(client, ["the", "fox", "a"], n=3, max_tokens=2))
  assert len(answer["choices"]) == 9
  assert sizes == [4, 4, 1]


def test_stop_strings(client):
  for seed in range(4):
    values = dict(seed=seed, max_tokens=12)
    (whole,) = body(complete(client, **values))["choices"]
    text = whole["text"]
    middle = len(text) // 2
    stop = text[middle : middle + 3]  # across the border of two tokens or not
    (choice,) = body(complete(client, stop=["nowhere", stop], **values))[
      "choices"
    ]
    assert choice["text"] == text[: text.find(stop)]
    assert choice["finish_reason"] == "stop"


def test_answers_depend_on_seed_and_number_alone(client):
  first = body(complete(client, n=3, seed=1))["choices"]
  assert len({choice["text"] for choice in first}) > 1
  assert body(complete(client, n=3, seed=1))["choices"] == first
  assert body(complete(client, n=1, seed=1))["choices"] == first[:1]
  assert body(complete(client, n=3, seed=-7))["choices"] != first
  # Without a seed, answers differ.
  texts = {body(complete(client))["choices"][0]["text"] for _ in range(6)}
  assert len(texts) > 1


def test_models(client):
  data = body(client.get("/v1/models"))
  (model,) = data["data"]
  assert data["object"] == "list" and model["id"] == "toy"
  assert body(client.get("/v1/models/toy")) == model
  assert client.get("/v1/models/other").status_code == 404


@pytest.mark.parametrize(
  "values, code, param",
  [
    (dict(model="gpt-4"), "model_not_found", "model"),
    (dict(model=None), "missing_parameter", "model"),
    (dict(prompt=None), "missing_parameter", "prompt"),
    (dict(prompt=""), "empty_prompt", "prompt"),
    (dict(prompt=[]), "invalid_parameter", "prompt"),
    (dict(prompt={"a": 1}), "invalid_parameter", "prompt"),
    (dict(prompt=[1, 10**6]), "invalid_parameter", "prompt"),
    (dict(prompt="\ud800"), "invalid_parameter", "prompt"),
    (dict(prompt="fox " * 40), "context_length_exceeded", "prompt"),
    (dict(max_tokens=31), "context_length_exceeded", "prompt"),
    (dict(max_tokens=0), "invalid_parameter", "max_tokens"),
    (dict(max_tokens=True), "invalid_parameter", "max_tokens"),
    (dict(temperature=-1), "invalid_parameter", "temperature"),
    (dict(temperature="hot"), "invalid_parameter", "temperature"),
    (dict(top_p=1.5), "invalid_parameter", "top_p"),
    (dict(n=0), "invalid_parameter", "n"),
    (dict(seed=0.5), "invalid_parameter", "seed"),
    (dict(stop=[""]), "invalid_parameter", "stop"),
    (dict(logprobs=99), "invalid_parameter", "logprobs"),
    (dict(stream=1), "invalid_parameter", "stream"),
    (dict(stream_options={}), "invalid_parameter", "stream_options"),
    (dict(suffix="end"), "unsupported_parameter", "suffix"),
    (dict(best_of=2), "unsupported_parameter", "best_of"),
    (dict(presence_penalty=0.1), "unsupported_parameter", "presence_penalty"),
    (dict(temprature=1), "unsupported_parameter", "temprature"),
  ],
)
def test_invalid_completions(client, values, code, param):
  request = {"model": "toy", "prompt": "the fox", **values}
  response = client.post(
    COMPLETIONS,
    content=json.dumps(request),
    headers={"content-type": "application/json"},
  )
  assert response.status_code == (404 if code == "model_not_found" else 400)
  error = response.json()["error"]
  assert (error["code"], error["param"]) == (code, param)
  assert error["type"] in ("invalid_request_error", "not_found_error")
  assert error["message"]


def _user(content):
  return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
  "values, code, param",
  [
    (dict(messages=[]), "invalid_parameter", "messages"),
    (dict(messages=["hi"]), "invalid_parameter", "messages[0]"),
    (
      dict(messages=[{"role": "robot", "content": "x"}]),
      "invalid_parameter",
      "messages[0].role",
    ),
    (
      dict(messages=[*_user("a"), {"role": "assistant", "content": "b"}]),
      "invalid_parameter",
      "messages",
    ),
    (dict(messages=_user(None)), "invalid_parameter", "messages[0].content"),
    (
      dict(messages=_user([{"type": "image_url", "image_url": "x"}])),
      "invalid_parameter",
      "messages[0].content",
    ),
    (
      dict(messages=[{"role": "user", "content": "a", "name": "bob"}]),
      "unsupported_parameter",
      "messages[0].name",
    ),
    (dict(messages=_user("fox " * 40)), "context_length_exceeded", "messages"),
    (dict(max_tokens=30), "context_length_exceeded", "messages"),
    (
      dict(max_tokens=2, max_completion_tokens=3),
      "invalid_parameter",
      "max_tokens",
    ),
    (dict(top_logprobs=2), "invalid_parameter", "top_logprobs"),
    (dict(logprobs=2), "invalid_parameter", "logprobs"),
    (dict(tools=[{"type": "function"}]), "unsupported_parameter", "tools"),
    (
      dict(response_format={"type": "json_object"}),
      "unsupported_parameter",
      "response_format",
    ),
    (dict(echo=True), "unsupported_parameter", "echo"),
  ],
)
def test_invalid_chats(client, values, code, param):
  request = {"model": "toy", "messages": _user("the fox"), **values}
  response = client.post(CHAT, json=request)
  assert response.status_code == 400
  error = response.json()["error"]
  assert (error["code"], error["param"]) == (code, param)


def test_neutral_parameters_and_text_parts_are_accepted(client):
  plain = body(chat(client, seed=1))["choices"]
  parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "fox"}]
  neutral = dict(presence_penalty=0, tools=[], user="me", stop=None, n=1)
  answer = chat(client, parts, seed=1, max_completion_tokens=12, **neutral)
  assert body(answer)["choices"] == plain


def test_requests_that_are_no_requests(client):
  kind = {"content-type": "application/json"}
  for response, status, code in (
    (client.post(CHAT, content="{", headers=kind), 400, "bad_json"),
    (client.post(CHAT, content="[1]", headers=kind), 400, "bad_json"),
    (client.post(CHAT, content=b"\xff", headers=kind), 400, "bad_json"),
    (client.post(CHAT, content="{}"), 415, "bad_content_type"),
    (client.get(CHAT), 405, "bad_request"),
    (client.get("/v1/embeddings"), 404, "bad_request"),
    (
      client.get("/v1/models", headers={"host": "evil.example:80"}),
      403,
      "remote_host",
    ),
  ):
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code
  for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
    body(client.get("/v1/models", headers={"host": host}))


def test_a_model_without_finite_logits_is_an_error(policy):
  testclient = tiny.library("starlette.testclient")
  model, params, tokenizer = policy
  broken = jax.tree.map(lambda x: x * np.nan, params)
  session = toy.make_session((model, broken, tokenizer))
  service = app.Service(session, "toy", max_batch=2)
  address = "http://localhost"
  with testclient.TestClient(app.make_app(service), base_url=address) as client:
    for _ in range(2):  # the server survives it
      response = complete(client)
      assert response.status_code == 500
      assert response.json()["error"]["code"] == "not_finite"
    assert '"not_finite"' in complete(client, stream=True).text
