"""A judge over HTTP: a server in this process answers, fails and redirects."""

import http.server
import json
import threading

import pytest

from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import judge_server

KEY = "sk-do-not-print"


class Server:
  """Answers each request by the next of its answers: (status, body)."""

  def __init__(self):
    self.answers, self.requests = [], []
    owner = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        owner.requests.append((self.path, dict(self.headers), json.loads(body)))
        status, content, headers = owner.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
          self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

      def log_message(self, *arguments):
        pass

    self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.thread = threading.Thread(target=self.server.serve_forever)
    self.thread.start()
    self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

  def add(self, status, text, **headers):
    body = {"choices": [{"message": {"content": text}}]}
    self.answers.append((status, json.dumps(body).encode(), headers))

  def close(self):
    self.server.shutdown()
    self.server.server_close()
    self.thread.join()


@pytest.fixture
def server():
  server = Server()
  yield server
  server.close()


def make(server, **options):
  waits = []
  judge = judge_server.ServerJudge(
    server.url, "m", parallel=1, sleep=waits.append, **options
  )
  return judge, waits


def test_verdicts_are_read_from_replies(server, monkeypatch):
  monkeypatch.setenv("JUDGE_KEY", KEY)
  for text in ("B", "no idea", None):
    server.add(200, text)
  judge, _ = make(server, key_env="JUDGE_KEY")
  verdicts = judge(["one", "two", "three"])
  assert [v.value for v in verdicts] == [0.0, None, None]
  path, headers, body = server.requests[0]
  assert path == "/v1/chat/completions"
  assert headers["Authorization"] == f"Bearer {KEY}"
  assert body["messages"] == [{"role": "user", "content": "one"}]
  assert (body["model"], body["temperature"]) == ("m", 0)
  assert KEY not in judge.name


def test_passing_failures_are_tried_again(server):
  server.add(503, "")
  server.add(429, "", **{"Retry-After": "7"})
  server.add(200, "A")
  judge, waits = make(server)
  assert judge(["q"])[0].value == 1.0
  assert waits == [1.0, 7.0]
  assert "Authorization" not in server.requests[0][1]


def test_a_server_that_keeps_failing_is_named(server, monkeypatch):
  monkeypatch.setenv("JUDGE_KEY", KEY)
  for _ in range(3):
    server.add(500, "")
  judge, waits = make(server, retries=2, key_env="JUDGE_KEY")
  with pytest.raises(UserError) as error:
    judge(["q"])
  assert error.value.code == "judge_server" and len(waits) == 2
  assert server.url in str(error.value) and KEY not in str(error.value)


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_is_not_tried_again(server, status):
  server.add(status, "no such model")
  judge, waits = make(server)
  with pytest.raises(UserError) as error:
    judge(["q"])
  assert error.value.code == "judge_server" and waits == []
  assert "no such model" in str(error.value)


def test_redirects_are_not_followed(server, monkeypatch):
  monkeypatch.setenv("JUDGE_KEY", KEY)
  server.add(307, "", Location="http://127.0.0.1:9/v1/chat/completions")
  judge, _ = make(server, key_env="JUDGE_KEY")
  with pytest.raises(UserError) as error:
    judge(["q"])
  assert error.value.code == "judge_server" and len(server.requests) == 1


def test_other_answers_are_no_chat_completion(server):
  server.answers.append((200, b"<html>", {}))
  with pytest.raises(UserError) as error:
    make(server)[0](["q"])
  assert error.value.code == "judge_server"


def test_a_server_that_does_not_run_is_named(server):
  server.close()
  judge, waits = make(server, retries=1)
  with pytest.raises(UserError) as error:
    judge(["q"])
  assert error.value.code == "judge_server" and waits == [1.0]


@pytest.mark.parametrize(
  ("url", "code"),
  [
    ("http://", "bad_url"),
    ("http://user:secret@host/v1", "bad_url"),
    ("http://host:port/v1", "bad_url"),
    ("https://host/v1?key=secret", "bad_url"),
    ("http://host/v1", "insecure_key"),
  ],
)
def test_urls_that_would_lose_a_key_are_refused(url, code, monkeypatch):
  monkeypatch.setenv("JUDGE_KEY", KEY)
  with pytest.raises(UserError) as error:
    judge_server.ServerJudge(url, "m", key_env="JUDGE_KEY")
  assert error.value.code == code
  assert "secret" not in str(error.value) and KEY not in str(error.value)


def test_a_missing_key_is_named(monkeypatch):
  monkeypatch.delenv("JUDGE_KEY", raising=False)
  with pytest.raises(UserError) as error:
    judge_server.ServerJudge("https://host/v1", "m", key_env="JUDGE_KEY")
  assert error.value.code == "no_key"
