"""Signed cookies of sessions: forgery, rotation of keys, several servers."""

import concurrent.futures
import contextlib
import threading

import pytest
import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.people import sessions, signing, tokens
from tests.labeling.made import NOW

DAY = 86400.0


@pytest.fixture
def signer(new_store):
  return signing.Signer(new_store)


def _key_ids(store):
  with store.read() as connection:
    return sorted(connection.scalars(sa.select(schema.signing_keys.c.id)))


def test_a_signed_token_is_read_again(new_store, signer):
  token = tokens.new_token()
  cookie = signer.sign(token, NOW)
  assert cookie != token and signer.token(cookie) == token
  assert signing.Signer(new_store).token(cookie) == token


def test_every_changed_character_is_refused(signer):
  cookie = signer.sign(tokens.new_token(), NOW)
  for i, character in enumerate(cookie):
    other = "1" if character != "1" else "2"
    assert signer.token(cookie[:i] + other + cookie[i + 1 :]) == ""
    assert signer.token(cookie[:i]) == ""


@pytest.mark.parametrize(
  "cookie",
  ["", ".", "1..", "1.a." + "0" * 64, "x" * 100_000, "1.a.b.c", "\ud800", "é",
   "9" * 5000 + ".a." + "0" * 64, "1.a." + "0" * 64 + "\n"],
)  # fmt: skip
def test_other_cookies_are_refused(signer, cookie):
  signer.sign(tokens.new_token(), NOW)
  assert signer.token(cookie) == ""


def test_the_cookie_of_another_store_is_refused(tmp_path, signer):
  from instructgpt_jax.labeling import store

  other = store.open_store(tmp_path / "other.db", create=True)
  cookie = signing.Signer(other).sign(tokens.new_token(), NOW)
  other.close()
  signer.sign(tokens.new_token(), NOW)
  assert signer.token(cookie) == ""


def test_a_forged_cookie_costs_no_look_up(signer, monkeypatch):
  cookie = signer.sign(tokens.new_token(), NOW)

  def fail():
    raise AssertionError("a look-up")

  monkeypatch.setattr(signer._store, "read", fail)
  assert signer.token(cookie)
  assert signer.token(cookie[:-64] + "0" * 64) == ""
  assert signer.token(cookie[:-1] + "x") == ""


def test_unknown_keys_are_looked_up_once_a_second(signer, monkeypatch):
  signer.sign(tokens.new_token(), NOW)
  moment = [100.0]
  monkeypatch.setattr(signing.time, "monotonic", lambda: moment[0])
  reads = []
  read = signer._store.read
  monkeypatch.setattr(
    signer._store, "read", lambda: reads.append(moment[0]) or read()
  )
  for _ in range(50):
    assert signer.token("7.a." + "0" * 64) == ""
    moment[0] += 0.1
  assert len(reads) == 5


def test_requests_at_once_after_a_start_find_their_keys(new_store, signer):
  cookie = signer.sign(tokens.new_token(), NOW)
  begun, may_read = threading.Event(), threading.Event()

  class SlowStore:
    @contextlib.contextmanager
    def read(self):
      begun.set()
      assert may_read.wait(10)
      with new_store.read() as connection:
        yield connection

  restarted = signing.Signer(SlowStore())
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(restarted.token, cookie)
    assert begun.wait(10)
    second = pool.submit(restarted.token, cookie)
    concurrent.futures.wait([second], timeout=0.2)
    may_read.set()
    assert first.result(10) == second.result(10) != ""


def test_a_look_up_that_failed_is_repeated(new_store, signer):
  cookie = signer.sign("token", NOW)
  failures = [UserError("full", code="disk_full")]

  class FlakyStore:
    def read(self):
      if failures:
        raise failures.pop()
      return new_store.read()

  restarted = signing.Signer(FlakyStore())
  with pytest.raises(UserError):
    restarted.token(cookie)
  assert restarted.token(cookie) == "token"


def test_a_look_up_does_not_lose_a_key_that_is_made_meanwhile(
  signer, monkeypatch
):
  signer.sign("old", NOW)
  read_keys, main = signing._read_keys, threading.current_thread()
  begun, may_end = threading.Event(), threading.Event()

  def read_slowly(connection):
    keys = read_keys(connection)
    if threading.current_thread() is not main:
      begun.set()
      assert may_end.wait(10)
    return keys

  monkeypatch.setattr(signing, "_read_keys", read_slowly)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    look_up = pool.submit(signer.token, "7.a." + "0" * 64)
    assert begun.wait(10)
    threading.Timer(0.2, may_end.set).start()
    cookie = signer.sign("new", NOW + signing.KEY_SECONDS)
    assert look_up.result(10) == ""
  assert signer.token(cookie) == "new"


def test_keys_are_replaced_and_sessions_go_on(new_store, signer):
  old = signer.sign("old", NOW)
  late = NOW + signing.KEY_SECONDS
  assert signer.sign("x", late - 1).startswith("1.")
  new = signer.sign("new", late)
  assert new.startswith("2.")
  assert signer.token(old) == "old" and signer.token(new) == "new"
  assert _key_ids(new_store) == [1, 2]
  # A key goes when no session that it has signed can be alive.
  later = late + signing.KEY_SECONDS
  signer.sign("x", later)
  assert later > NOW + signing.KEY_SECONDS + sessions.SESSION_SECONDS
  assert _key_ids(new_store) == [2, 3]
  assert signer.token(old) == "" and signer.token(new) == "new"


def test_servers_of_one_store_share_keys(new_store, monkeypatch):
  monkeypatch.setattr(signing, "_READ_SECONDS", 0.0)
  signers = [signing.Signer(new_store) for _ in range(8)]
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    cookies = list(threads.map(lambda s: s.sign("token", NOW), signers))
  assert _key_ids(new_store) == [1]
  late = NOW + signing.KEY_SECONDS
  cookies.append(signers[0].sign("token", late))
  for one in signers:
    assert {one.token(cookie) for cookie in cookies} == {"token"}
  assert signers[1].sign("token", late).startswith("2.")
  assert _key_ids(new_store) == [1, 2]
