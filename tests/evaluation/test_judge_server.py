"""A judge over HTTP: a server in this process answers, fails and redirects."""

import http.server
import json
import threading
import time

import pytest

from experiments import judge as judge_main
from instructgpt_jax.errors import UserError
from instructgpt_jax.evaluation import judge_command, judge_server, reply_log
from tests.evaluation.made_judges import write_lines

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


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_tried_again(server, status):
  server.add(status, "no such model")
  judge, waits = make(server)
  with pytest.raises(UserError) as error:
    judge(["q"])
  assert error.value.code == "judge_server" and waits == []
  assert "no such model" in str(error.value)


def test_one_refused_question_has_no_verdict(server):
  """A question beyond the server's context does not end the run."""
  server.add(200, "A")
  server.add(400, "maximum context length is 10")
  judge, waits = make(server)
  answered, refused = judge(["short", "long"])
  assert answered.value == 1.0 and waits == []
  assert refused.value is None and refused.problem == judge_server.REFUSED
  assert "maximum context length" in refused.reply
  server.add(413, "again")
  assert judge(["long"])[0].problem == judge_server.REFUSED


def test_an_error_of_the_server_does_not_show_the_key(server, monkeypatch):
  monkeypatch.setenv("JUDGE_KEY", KEY)
  server.add(401, "x" * 135 + f"wrong key {KEY}")
  judge, _ = make(server, key_env="JUDGE_KEY")
  with pytest.raises(UserError) as error:
    judge(["q"])
  assert "wrong key" in str(error.value) and KEY[:5] not in str(error.value)


def test_a_server_on_this_host_is_asked_without_a_proxy(server, monkeypatch):
  """A proxy would read the key of an unencrypted request."""
  monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
  monkeypatch.delenv("no_proxy", raising=False)
  server.add(200, "B")
  assert make(server, retries=0)[0](["q"])[0].value == 0.0


def test_a_failure_ends_the_waits_of_other_requests(server):
  """With real waits the first question would be tried for 15 seconds."""
  server.add(503, "")
  server.add(401, "")
  judge = judge_server.ServerJudge(server.url, "m", parallel=2)
  start = time.monotonic()
  with pytest.raises(UserError):
    judge(["one", "two"])
  assert time.monotonic() - start < 5


def test_a_run_that_stopped_resumes(server, tmp_path):
  """Three pairs are six questions; the server fails at the fifth."""
  data = write_lines(
    tmp_path / "pairs.jsonl",
    *(
      {"input": f"q{i}", "output_1": "a", "output_2": "b", "label": 1}
      for i in range(3)
    ),
  )
  output = tmp_path / "out"
  flags = [
    f"--judge={server.url}", "--judge_model=m", "--parallel=1", "--retries=0",
    f"--human=llmbar={data}", f"--output={output}",
  ]  # fmt: skip
  for text in ("A", "A", "tie", "B"):
    server.add(200, text)
  server.add(500, "")
  assert judge_main.main(flags) == 2
  assert [path.name for path in output.iterdir()] == [judge_command.REPLIES]
  with (output / judge_command.REPLIES).open("a") as file:
    file.write('{"request": "cut by a ki')
  server.add(200, "A")
  server.add(200, "A")
  assert judge_main.main(flags) == 0
  assert len(server.requests) == 4 + 1 + 2
  rows = (output / judge_command.VERDICTS).read_text().splitlines()
  values = [
    (row["as_a"]["value"], row["as_b"]["value"])
    for row in map(json.loads, rows)
  ]
  assert values == [(1, 1), (1, 0), (0.5, 0)]
  assert not (output / judge_command.REPLIES).exists()
  # Another question, as by another model, has no reply yet.
  for _ in range(6):
    server.add(200, "B")
  flags[1] = "--judge_model=other"
  assert judge_main.main([*flags, "--overwrite"]) == 0
  assert len(server.requests) == 7 + 6


@pytest.mark.parametrize(
  ("line", "code"),
  [("{", "bad_json"), ("[]", "bad_reply"), ('{"request": "x"}', "bad_reply")],
)
def test_other_files_are_no_replies(line, code, tmp_path):
  path = tmp_path / "replies.jsonl"
  reply_log.ReplyLog(path).add("q", "A")
  with path.open("a") as file:
    file.write(f"{line}\n")
  with pytest.raises(UserError) as error:
    reply_log.ReplyLog(path)
  assert (error.value.code, error.value.line) == (code, 2)


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
