"""Simulated labelers over HTTP, with a server that is killed on the way."""

import http.server
import json
import threading

import pytest

from benchmarks import labeling_acceptance, labeling_agreement, labeling_site
from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import forms, packages, quality, simulated
from instructgpt_jax.world import gold, labelers
from instructgpt_jax.world.facts import make_world
from tests.interop import tiny

for package in packages.PACKAGES:
  tiny.library(package)


@pytest.fixture(scope="module")
def world():
  return make_world(0)


@pytest.fixture(scope="module")
def answers(world):
  return labeling_site.draw_answers(world, 40, 4)


def test_labelers_of_the_world_rank_over_http_while_the_server_is_killed(
  tmp_path,
):
  figures = labeling_acceptance.accept(
    tmp_path, labelers=4, prompts=12, completions=4, overlap=2, kills=1
  )
  assert figures["labels"] == 24
  assert 40 < figures["agreement"] < 100


def test_checks_of_the_benchmark_can_fail(tmp_path, world, answers):
  site = labeling_site.Site(tmp_path, world, answers[:3], [], [], "")
  crew = [persona for persona, _ in simulated.personas(3)]
  site.crew = crew
  done = [
    simulated.Acknowledged(
      i,
      persona.name,
      "ranking",
      answer["prompt"],
      tuple(answer["completions"]),
      persona.rank(world, answer["prompt"], answer["completions"]),
    )
    for i, (answer, persona) in enumerate(
      (a, p) for a in site.answers for p in crew[:2]
    )
  ]
  tile = labeling_agreement.agreement_by_hand(done)
  rounded = (round(tile[0], 1), round(tile[1], 1), *tile[2:])
  labeling_agreement.check_dashboard(done, rounded)
  with pytest.raises(labeling_site.Failed):
    labeling_agreement.check_dashboard(done, (rounded[0] + 0.1, *rounded[1:]))
  with pytest.raises(labeling_site.Failed):
    labeling_agreement.check_dashboard(done[:-1], rounded)
  lines = list(labeling_acceptance.direct_records(site, done))
  assert {line["labeler_id"] for line in lines} == {"1", "2"}


def test_the_expected_agreement_is_that_of_many_draws(world, answers):
  """Also where answers are equal, and where tastes differ."""
  first = [
    (a["prompt"], [*a["completions"], a["completions"][0]]) for a in answers[:6]
  ]
  tastes = (labelers.TRAINING[1], labelers.HELD_OUT[1])
  alike = ordered = 0
  for seed in range(120):
    for prompt, texts in first:
      orders = [
        quality.order_of_pairs(
          simulated.Persona(f"{taste} {i}", taste, seed).rank(
            world, prompt, texts
          )["ranks"]
        )
        for i, taste in enumerate(tastes)
      ]
      alike += int((orders[0] * orders[1] == 1).sum())
      ordered += int((orders[0] * orders[1] != 0).sum())
  expected = labeling_agreement.expected_agreement(
    world, ((prompt, texts, tastes) for prompt, texts in first)
  )
  assert abs(100 * alike / ordered - expected) < 3
  assert expected < 99


def test_a_decision_depends_on_texts_and_not_on_their_order(world, answers):
  persona = simulated.Persona("a", "labeler_b")
  for answer in answers:
    texts = answer["completions"]
    content = persona.rank(world, answer["prompt"], texts)
    reverse = persona.rank(world, answer["prompt"], texts[::-1])
    for name in ("ranks", "overall", "flags"):
      assert reverse[name] == content[name][::-1]


def test_contents_are_valid_forms(world, answers):
  persona = simulated.Persona("a", "labeler_c")
  for answer in answers:
    payload = {"turns": [], "completions": answer["completions"]}
    content = persona.rank(world, answer["prompt"], answer["completions"])
    assert forms.validate("ranking", payload, content) == content
    pair = {"turns": [], "completions": answer["completions"][:2]}
    content = persona.compare(world, answer["prompt"], pair["completions"])
    assert forms.validate("comparison", pair, content) == content


def test_comparisons_follow_the_ratings(world, answers):
  persona = simulated.Persona("a", "labeler_a")
  for answer in answers:
    first, second = answer["completions"][:2]
    ratings = [persona.rate(world, answer["prompt"], t)
               for t in (first, second)]  # fmt: skip
    content = persona.compare(world, answer["prompt"], (first, second))
    order = (content["confidence"] > 5) - (content["confidence"] < 5)
    assert order == (ratings[1] > ratings[0]) - (ratings[1] < ratings[0])


def test_flags_are_those_of_the_gold_label(world):
  prompt, text = "where does ann live ?", "the weather is fine ."
  form = gold.label(prompt, text, world=world)
  flags = simulated.Persona("a", "labeler_a").rank(world, prompt, [text, "x"])[
    "flags"
  ][0]
  assert flags["fails_instruction"] == form.failures["fails_instruction"]
  assert flags["fails_instruction"] is True


def test_labelers_with_one_taste_have_their_own_noise(world, answers):
  crew = [p for p, _ in simulated.personas(10)]
  same = [p for p in crew if p.taste == crew[0].taste]
  assert len(same) == 2
  ratings = [
    [p.rate(world, a["prompt"], t) for a in answers for t in a["completions"]]
    for p in same
  ]
  assert ratings[0] != ratings[1]


def test_personas_have_the_world_s_tastes():
  crew = simulated.personas(7, held_out=4)
  assert [p.taste for p, held_out in crew if not held_out] == [
    *labelers.TRAINING,
    *labelers.TRAINING[:2],
  ]
  assert {p.taste for p, held_out in crew if held_out} <= set(labelers.HELD_OUT)
  assert len({p.name for p, _ in crew}) == 11


class Flaky(http.server.BaseHTTPRequestHandler):
  """Answers with a list of (status, body); None closes the connection."""

  answers: list = []
  requests: list = []

  def do_POST(self):
    self.rfile.read(int(self.headers["Content-Length"]))
    self.do_GET()

  def do_GET(self):
    self.requests.append((self.path, dict(self.headers)))
    answer = self.answers.pop(0)
    if answer is None:
      self.connection.close()
      return
    status, body = answer
    content = json.dumps(body).encode()
    self.send_response(status)
    self.send_header("Content-Length", str(len(content)))
    self.send_header("Set-Cookie", f"a={len(self.requests)}; Path=/; HttpOnly")
    self.end_headers()
    self.wfile.write(content)

  def log_message(self, *_):
    pass


@pytest.fixture
def flaky():
  Flaky.answers, Flaky.requests = [], []
  with http.server.HTTPServer(("127.0.0.1", 0), Flaky) as listening:
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    yield listening.server_address[1]
    listening.shutdown()
    thread.join()


def client(port, **options):
  return simulated.Client("127.0.0.1", port, sleep=lambda _: None, **options)


def test_a_client_repeats_what_was_not_answered(flaky):
  Flaky.answers = [None, (503, {"error": "x"}), (200, [1])]
  one = client(flaky)
  assert one.get("/a", name="first") == [1]
  assert one.retries == 2 and len(one.seconds["first"]) == 1
  one.close()


def test_a_client_sends_its_cookies(flaky):
  Flaky.answers = [(200, 1), (200, 2)]
  one = client(flaky)
  one.get("/a")
  one.close()
  one.get("/b")
  one.close()
  assert "Cookie" not in Flaky.requests[0][1]
  assert Flaky.requests[1][1]["Cookie"] == "a=1"


def test_a_client_logs_in_where_the_answer_to_an_invitation_was_lost(flaky):
  used = {"error": "used", "code": "invitation_used"}
  Flaky.answers = [
    (200, {"csrf": "a"}),
    None,
    (400, used),
    (200, {"csrf": "b"}),
    (200, {"csrf": "c"}),
  ]
  one = client(flaky)
  one.accept_invitation("token", "name", "password")
  one.close()
  paths = [path for path, _ in Flaky.requests]
  assert paths == ["/login", *["/invitation"] * 2, *["/login"] * 2]

  Flaky.answers = [(200, {"csrf": "a"}), (400, used)]
  other = client(flaky)
  with pytest.raises(simulated.Refused):
    other.accept_invitation("token", "name", "password")
  other.close()


def test_a_client_does_not_repeat_what_was_refused(flaky):
  Flaky.answers = [(409, {"error": "taken", "code": "place_taken"})]
  one = client(flaky)
  with pytest.raises(simulated.Refused) as caught:
    one.get("/a")
  assert (caught.value.status, caught.value.code) == (409, "place_taken")
  assert one.retries == 0
  one.close()


def test_a_client_gives_up_in_the_end():
  times = iter(range(100))
  one = client(9, patience=5, clock=lambda: float(next(times)))
  with pytest.raises(UserError) as caught:
    one.get("/a")
  assert caught.value.code == "no_answer"
