"""Users, invitations, log-ins and sessions."""

import base64
import concurrent.futures
import hashlib
import time

import pytest
import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import assignment, schema, store
from instructgpt_jax.labeling.people import (
  invitations,
  log_in_limits,
  passwords,
  sessions,
  users,
)
from tests.labeling.made import NOW, add_items, add_user

DAY = 86400.0


def _code(function, *arguments, **options):
  with pytest.raises(UserError) as error:
    function(*arguments, **options)
  return error.value.code


def _count(store, table):
  with store.read() as connection:
    return connection.execute(
      sa.select(sa.func.count()).select_from(table)
    ).scalar()


def _everything(store):
  """Returns all values of a store as text."""
  with store.read() as connection:
    return repr(
      [
        connection.execute(sa.select(table)).all()
        for table in schema.metadata.sorted_tables
      ]
    )


def test_an_invitation_makes_a_user_once(new_store):
  token = invitations.invite(
    new_store, "labeler", NOW, held_out=True, note="Ann"
  )
  assert invitations.read_invitation(new_store, token, NOW).role == "labeler"
  user = invitations.accept_invitation(
    new_store, token, "Ann", "eight888", NOW + 1
  )
  assert user == users.User(1, "Ann", "labeler", True, True, NOW + 1)
  assert users.list_users(new_store) == [user]
  for function in (
    lambda: invitations.read_invitation(new_store, token, NOW),
    lambda: invitations.accept_invitation(
      new_store, token, "B", "eight888", NOW
    ),
  ):
    assert _code(function) == "invitation_used"
  [invitation] = invitations.list_invitations(new_store)
  assert (invitation.used_by, invitation.used_at) == (user.id, NOW + 1)


def test_two_requests_with_one_invitation_make_one_user(new_store):
  token = invitations.invite(new_store, "labeler", NOW)

  def accept(number):
    try:
      return invitations.accept_invitation(
        new_store, token, f"user {number}", "a password", NOW
      )
    except UserError as error:
      return error.code

  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    results = list(threads.map(accept, range(8)))
  assert results.count("invitation_used") == 7
  assert len(users.list_users(new_store)) == 1


def test_an_invitation_expires(new_store):
  token = invitations.invite(new_store, "labeler", NOW, seconds=DAY)
  invitations.read_invitation(new_store, token, NOW + DAY - 1)
  for function in (
    lambda: invitations.read_invitation(new_store, token, NOW + DAY),
    lambda: invitations.accept_invitation(
      new_store, token, "Ann", "a password", NOW + DAY
    ),
  ):
    assert _code(function) == "invitation_expired"
  assert users.list_users(new_store) == []


@pytest.mark.parametrize("token", ["", "x" * 43, "\ud800", "\0", "🙂"])
def test_an_unknown_invitation_is_refused(new_store, token):
  invitations.invite(new_store, "labeler", NOW)
  assert _code(invitations.read_invitation, new_store, token, NOW) == (
    "no_invitation"
  )


def test_an_invitation_is_revoked(new_store):
  token = invitations.invite(new_store, "labeler", NOW)
  [invitation] = invitations.list_invitations(new_store)
  invitations.revoke_invitation(new_store, invitation.id)
  assert _code(invitations.read_invitation, new_store, token, NOW) == (
    "no_invitation"
  )
  add_user(new_store)
  [used] = invitations.list_invitations(new_store)
  assert _code(invitations.revoke_invitation, new_store, used.id) == (
    "no_invitation"
  )


def test_roles_are_checked(new_store):
  assert _code(invitations.invite, new_store, "admin", NOW) == "bad_role"
  assert _code(invitations.invite, new_store, "owner", NOW, held_out=True) == (
    "held_out_role"
  )


@pytest.mark.parametrize(
  "name",
  [
    "",
    "   ",
    "\u200d",
    "a\0b",
    "a\ud800",
    "a\u202eb",  # changes the direction of the text after it
    "a\u200bb",
    "\ufeffAnn",
    "...",
    "\\",
    "a" * 65,
  ],
)
def test_a_bad_name_is_refused_and_the_invitation_stays(new_store, name):
  token = invitations.invite(new_store, "labeler", NOW)
  assert (
    _code(
      invitations.accept_invitation, new_store, token, name, "a password", NOW
    )
    == "bad_name"
  )
  assert invitations.accept_invitation(new_store, token, "A", "a password", NOW)


@pytest.mark.parametrize(
  "first, second",
  [
    ("Ann", "ANN"),
    ("Straße", "STRASSE"),
    ("Zoë", "Zoe\u0308"),
    ("Ann Lee", "  ann   lee "),
    ("Ann", "Ａｎｎ"),  # full width
    ("İan", "i\u0307an"),
    ("نامه\u200cها", "نامهها"),
  ],
)
def test_names_that_look_alike_are_one(new_store, first, second):
  user = add_user(new_store, first)
  token = invitations.invite(new_store, "labeler", NOW)
  assert (
    _code(
      invitations.accept_invitation, new_store, token, second, "a password", NOW
    )
    == "name_taken"
  )
  password = f"password of {first}"
  _, other = sessions.log_in(new_store, second, password, "::1", NOW)
  assert other == user


@pytest.mark.parametrize(
  "name", ["李小龍", "O'Brien; --", "a%b_c", "🙂7", "\\n"]
)
def test_odd_names_work(new_store, name):
  user = add_user(new_store, name)
  token, other = sessions.log_in(
    new_store, name, f"password of {name}", "::1", NOW
  )
  assert user == other == sessions.session_user(new_store, token, NOW)


@pytest.mark.parametrize(
  "password", ["", "seven77", "x" * 1025, "ann maria lee", "ANN MARIA LEE"]
)
def test_a_bad_password_is_refused(new_store, password):
  token = invitations.invite(new_store, "labeler", NOW)
  assert (
    _code(
      invitations.accept_invitation,
      new_store,
      token,
      "Ann Maria Lee",
      password,
      NOW,
    )
    == "bad_password"
  )


@pytest.mark.parametrize(
  "password", ["pässwörd", "\ud800" * 8, "\0" * 9, "🙂" * 8]
)
def test_odd_passwords_work(new_store, password):
  token = invitations.invite(new_store, "labeler", NOW)
  invitations.accept_invitation(new_store, token, "Ann", password, NOW)
  assert sessions.log_in(new_store, "Ann", password, "::1", NOW)
  wrong = password[:-1] + "x"
  assert _code(sessions.log_in, new_store, "Ann", wrong, "::1", NOW) == (
    "wrong_log_in"
  )


def test_a_password_is_the_same_from_another_keyboard(new_store):
  token = invitations.invite(new_store, "labeler", NOW)
  invitations.accept_invitation(new_store, token, "Ann", "Zoë Zoë Zoë", NOW)
  assert sessions.log_in(
    new_store, "Ann", "Zoe\u0308 Zoe\u0308 Zoe\u0308", "::1", NOW
  )


def test_the_store_has_no_secret(new_store):
  token = invitations.invite(new_store, "labeler", NOW)
  invitations.accept_invitation(new_store, token, "Ann", "a password", NOW)
  session, _ = sessions.log_in(new_store, "Ann", "a password", "1.2.3.4", NOW)
  pytest.raises(
    UserError, sessions.log_in, new_store, "hunter2", "x", "1.2.3.4", NOW
  )
  values = _everything(new_store)
  for secret in (token, session, "a password", "hunter2"):
    assert secret not in values
  assert hashlib.sha256(session.encode()).hexdigest() in values


def test_passwords_are_scrypt_of_the_recommended_cost(new_store, monkeypatch):
  monkeypatch.undo()
  add_user(new_store, "Ann")
  with new_store.read() as connection:
    stored = connection.execute(sa.select(schema.users.c.password)).scalar()
  name, n, r, p, salt, key = stored.split("$")
  assert (name, n, r, p) == ("scrypt", "16384", "8", "5")
  assert base64.b64decode(key) == hashlib.scrypt(
    b"password of Ann",
    salt=base64.b64decode(salt),
    n=2**14,
    r=8,
    p=5,
    maxmem=1 << 26,
    dklen=32,
  )


def test_an_unknown_name_takes_as_long_as_a_wrong_password(
  new_store, monkeypatch
):
  monkeypatch.undo()
  monkeypatch.setattr(passwords, "_SCRYPT_P", 1)
  add_user(new_store, "Ann")
  calls = []
  scrypt = hashlib.scrypt
  monkeypatch.setattr(
    passwords.hashlib,
    "scrypt",
    lambda *a, **k: calls.append(k["n"]) or scrypt(*a, **k),
  )
  for name in ("Ann", "nobody"):
    calls.clear()
    assert _code(sessions.log_in, new_store, name, "wrong", "::1", NOW) == (
      "wrong_log_in"
    )
    assert calls == [2**14]


def test_sessions_end(new_store):
  user = add_user(new_store)
  password = "password of Ann"
  first, _ = sessions.log_in(new_store, "Ann", password, "::1", NOW)
  second, _ = sessions.log_in(new_store, "Ann", password, "::1", NOW + 1)
  assert first != second
  end = NOW + sessions.SESSION_SECONDS
  assert sessions.session_user(new_store, first, end - 1) == user
  assert sessions.session_user(new_store, first, end) is None
  sessions.log_out(new_store, second)
  assert sessions.session_user(new_store, second, NOW) is None
  assert sessions.session_user(new_store, first, NOW) == user
  for token in ("", "\ud800", "x" * 10000):
    assert sessions.session_user(new_store, token, NOW) is None
    sessions.log_out(new_store, token)
  # The rows of expired sessions are removed.
  sessions.log_in(new_store, "Ann", password, "::1", end + 1)
  assert _count(new_store, schema.sessions) == 1


def test_a_new_password_ends_sessions(new_store):
  user = add_user(new_store)
  old = "password of Ann"
  token, _ = sessions.log_in(new_store, "Ann", old, "::1", NOW)
  change = sessions.change_password
  assert (
    _code(change, new_store, user.id, "wrong", "a new one", "::1", NOW)
    == "wrong_log_in"
  )
  assert _code(change, new_store, user.id, old, "short", "::1", NOW) == (
    "bad_password"
  )
  assert sessions.session_user(new_store, token, NOW) == user
  change(new_store, user.id, old, "a new one", "::1", NOW)
  assert sessions.session_user(new_store, token, NOW) is None
  assert _code(sessions.log_in, new_store, "Ann", old, "::1", NOW) == (
    "wrong_log_in"
  )
  assert sessions.log_in(new_store, "Ann", "a new one", "::1", NOW)


def test_a_forgotten_password_is_reset_by_invitation(new_store):
  user = add_user(new_store)
  token, _ = sessions.log_in(new_store, "Ann", "password of Ann", "::1", NOW)
  for _ in range(log_in_limits.MAX_FAILURES_OF_PAIR):
    pytest.raises(UserError, sessions.log_in, new_store, "Ann", "?", "::1", NOW)
  reset = invitations.invite_to_reset(new_store, user.id, NOW)
  assert invitations.read_invitation(new_store, reset, NOW).for_user == user.id
  assert (
    invitations.accept_invitation(new_store, reset, "other", "a new one", NOW)
    == user
  )
  assert sessions.session_user(new_store, token, NOW) is None
  assert sessions.log_in(new_store, "Ann", "a new one", "::1", NOW)
  assert len(users.list_users(new_store)) == 1
  assert _code(invitations.invite_to_reset, new_store, 7, NOW) == "not_found"


# The limit on failed log-ins.


def _fail(store, count, name="Ann", address="10.0.0.1", now=NOW):
  for _ in range(count):
    assert _code(sessions.log_in, store, name, "wrong", address, now) == (
      "wrong_log_in"
    )


def _log_in_code(store, address="10.0.0.1", now=NOW, name="Ann"):
  try:
    sessions.log_in(store, name, "password of Ann", address, now)
  except UserError as error:
    return error.code


def test_log_ins_are_limited(new_store):
  add_user(new_store)
  _fail(new_store, log_in_limits.MAX_FAILURES_OF_PAIR)
  with pytest.raises(log_in_limits.TooManyLogIns) as error:
    sessions.log_in(new_store, "ann", "password of Ann", "10.0.0.1", NOW + 60)
  assert error.value.retry_after == log_in_limits.WINDOW_SECONDS - 60
  # The user is not locked out elsewhere, and others are not here.
  assert _log_in_code(new_store, "10.0.0.2") is None
  add_user(new_store, "Bea")
  sessions.log_in(new_store, "Bea", "password of Bea", "10.0.0.1", NOW)
  end = NOW + log_in_limits.WINDOW_SECONDS
  assert _log_in_code(new_store, now=end - 1) == "too_many_log_ins"
  assert _log_in_code(new_store, now=end) is None


def test_a_success_ends_the_count(new_store):
  add_user(new_store)
  for _ in range(3):
    _fail(new_store, log_in_limits.MAX_FAILURES_OF_PAIR - 1)
    assert _log_in_code(new_store) is None


def test_guesses_from_many_addresses_are_limited(new_store):
  add_user(new_store)
  for i in range(log_in_limits.MAX_FAILURES_OF_NAME):
    _fail(new_store, 1, address=f"10.0.1.{i}")
  assert _log_in_code(new_store, "10.9.9.9") == "too_many_log_ins"


def test_guesses_of_many_names_are_limited(new_store):
  """A success of the guesser's account does not reset the count."""
  add_user(new_store)
  for i in range(log_in_limits.MAX_FAILURES_OF_ADDRESS):
    _fail(new_store, 1, name=f"name {i}")
    if i == 100:
      assert _log_in_code(new_store) is None
  assert _log_in_code(new_store) == "too_many_log_ins"
  assert _log_in_code(new_store, "10.0.0.2") is None


def test_addresses_of_one_ipv6_network_are_one(new_store):
  add_user(new_store)
  for i in range(log_in_limits.MAX_FAILURES_OF_PAIR):
    _fail(new_store, 1, address=f"2001:db8::{i:x}")
  assert _log_in_code(new_store, "2001:db8::ffff") == "too_many_log_ins"
  assert _log_in_code(new_store, "2001:db8:1::1") is None


@pytest.mark.parametrize("address", ["", "unix", "\ud800", "::ffff:1.2.3.4"])
def test_odd_addresses_are_limited(new_store, address):
  add_user(new_store)
  _fail(new_store, log_in_limits.MAX_FAILURES_OF_PAIR, address=address)
  assert _log_in_code(new_store, address) == "too_many_log_ins"


def test_parallel_guesses_are_limited(new_store):
  add_user(new_store)
  with concurrent.futures.ThreadPoolExecutor(16) as threads:
    codes = list(
      threads.map(
        lambda _: _code(
          sessions.log_in, new_store, "Ann", "wrong", "10.0.0.1", NOW
        ),
        range(40),
      )
    )
  assert codes.count("wrong_log_in") == log_in_limits.MAX_FAILURES_OF_PAIR


def test_the_limit_outlives_the_process(new_store, tmp_path):
  add_user(new_store)
  _fail(new_store, log_in_limits.MAX_FAILURES_OF_PAIR)
  again = store.open_store(tmp_path / "labels.db")
  assert _log_in_code(again) == "too_many_log_ins"
  again.close()


def test_old_attempts_are_removed_also_after_the_clock_was_put_back(new_store):
  add_user(new_store)
  _fail(new_store, log_in_limits.MAX_FAILURES_OF_PAIR)
  assert _log_in_code(new_store, now=NOW - 30 * DAY) is None
  assert _count(new_store, schema.attempts) == 0


@pytest.mark.parametrize("name", ["", "\ud800", "a\0", "x" * 100_000, "'; --"])
def test_odd_log_ins_are_wrong_log_ins(new_store, name):
  add_user(new_store)
  assert _code(sessions.log_in, new_store, name, "wrong", "::1", NOW) == (
    "wrong_log_in"
  )
  long = "x" * 10_000_000
  begin = time.monotonic()
  assert _code(sessions.log_in, new_store, "Ann", long, "::1", NOW) == (
    "wrong_log_in"
  )
  assert time.monotonic() - begin < 60


# Changes by the owner.


def test_an_inactive_user_is_out_and_loses_places(new_store):
  add_items(new_store)
  ann, bea = add_user(new_store), add_user(new_store, "Bea")
  rules = assignment.Rules()
  token, _ = sessions.log_in(new_store, "Ann", "password of Ann", "::1", NOW)
  assert assignment.next_item(new_store, ann.id, rules, NOW)
  assert assignment.next_item(new_store, bea.id, rules, NOW) is None
  users.update_user(new_store, ann.id, NOW, active=False)
  assert sessions.session_user(new_store, token, NOW) is None
  assert _log_in_code(new_store) == "wrong_log_in"
  assert (
    _code(assignment.next_item, new_store, ann.id, rules, NOW) == "not_allowed"
  )
  assert assignment.next_item(new_store, bea.id, rules, NOW)
  users.update_user(new_store, ann.id, NOW, active=True)
  assert _log_in_code(new_store) is None


def test_a_project_keeps_an_owner(new_store):
  owner = add_user(new_store, "Olga", "owner")
  for change in (dict(active=False), dict(role="labeler")):
    assert (
      _code(users.update_user, new_store, owner.id, NOW, **change)
      == "last_owner"
    )
  second = add_user(new_store, "Otto", "owner")
  users.update_user(new_store, second.id, NOW, active=False)
  assert (
    _code(users.update_user, new_store, owner.id, NOW, role="reviewer")
    == "last_owner"
  )
  users.update_user(new_store, second.id, NOW, active=True)
  assert (
    users.update_user(new_store, owner.id, NOW, role="reviewer").role
    == "reviewer"
  )


def test_a_labeler_becomes_held_out(new_store):
  user = add_user(new_store)
  update = users.update_user
  assert update(new_store, user.id, NOW, held_out=True).held_out
  assert users.get_user(new_store, user.id).held_out
  assert _code(update, new_store, user.id, NOW, role="owner") == (
    "held_out_role"
  )
  assert _code(update, new_store, user.id, NOW, role="king") == "bad_role"


@pytest.mark.parametrize("user_id", [0, -1, 7, 2**63, 2**200])
def test_an_unknown_user_is_refused(new_store, user_id):
  for function in (
    lambda: users.get_user(new_store, user_id),
    lambda: users.update_user(new_store, user_id, NOW, active=False),
  ):
    assert _code(function) == "not_found"
  with new_store.read() as connection:
    assert _code(users.check_role, connection, user_id, "owner") == (
      "not_allowed"
    )
