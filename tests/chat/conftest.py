"""Fixtures for tests of chat."""

import pytest

from tests.chat import toy


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
  return toy.make_policy(tmp_path_factory.mktemp("tokenizer"))
