"""Fixtures for tests of the server."""

import pytest

from instructgpt_jax.serve import app
from tests.chat import toy
from tests.interop import tiny

HOST = "http://127.0.0.1"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
  return toy.make_policy(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def session(policy):
  return toy.make_session(policy)


@pytest.fixture(scope="module")
def client(session):
  """Returns an HTTP client of an application that runs in this process."""
  testclient = tiny.library("starlette.testclient")
  service = app.Service(session, "toy", max_batch=4)
  with testclient.TestClient(app.make_app(service), base_url=HOST) as client:
    yield client
  assert service.closed
