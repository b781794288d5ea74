"""The limit on failed log-ins, by name and by address."""

from __future__ import annotations

import hashlib
import ipaddress
from typing import NamedTuple

import sqlalchemy as sa

from instructgpt_jax.errors import UserError
from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.people import names
from instructgpt_jax.labeling.store import Store

# Failed log-ins within the window, for a name from one address, a name from
# all addresses, and all names from one address.
WINDOW_SECONDS = 900.0
MAX_FAILURES_OF_PAIR = 10
MAX_FAILURES_OF_NAME = 50
MAX_FAILURES_OF_ADDRESS = 200


class TooManyLogIns(UserError):
  """A log-in that is refused because others have failed.

  Attributes:
    retry_after: seconds after which it may succeed.
  """

  def __init__(self, retry_after: float):
    minutes = max(1, round(retry_after / 60))
    super().__init__(
      "too many log-ins have failed",
      fix=f"try again in {minutes} min",
      code="too_many_log_ins",
    )
    self.retry_after = retry_after


class Attempt(NamedTuple):
  """A log-in that has been counted.

  Attributes:
    name: name of the user, as it was typed.
    address: IP address of the client.
    rows: ids of its rows in `schema.attempts`.
  """

  name: str
  address: str
  rows: list[int]


def count_attempt(store: Store, name: str, address: str, now: float) -> Attempt:
  """Counts a log-in as failed, until `forget_attempt`.

  Raises:
    TooManyLogIns: the name or the address has reached its limit.
  """
  table = schema.attempts
  limits = _limits(name, address)
  with store.begin() as connection:
    # Rows of the future were written before the clock was put back.
    connection.execute(
      sa.delete(table).where(
        sa.or_(
          table.c.at <= now - WINDOW_SECONDS, table.c.at > now + WINDOW_SECONDS
        )
      )
    )
    for key, limit in limits.items():
      times = connection.execute(
        sa.select(table.c.at).where(table.c.key == key).order_by(table.c.at)
      )
      times = list(times.scalars())
      if len(times) >= limit:
        raise TooManyLogIns(times[-limit] + WINDOW_SECONDS - now)
    rows = [
      connection.execute(
        sa.insert(table).values(key=key, at=now).returning(table.c.id)
      ).scalar_one()
      for key in limits
    ]
  return Attempt(name, address, rows)


def forget_attempt(store: Store, attempt: Attempt) -> None:
  """Removes a log-in that succeeded, and the name's failures before it.

  The failures of the address stay: an account of one's own must not reset them.
  """
  table = schema.attempts
  pair, by_name, _ = _limits(attempt.name, attempt.address)
  with store.begin() as connection:
    connection.execute(
      sa.delete(table).where(
        sa.or_(table.c.key.in_([pair, by_name]), table.c.id.in_(attempt.rows))
      )
    )


def forget_failures(connection: sa.Connection, name: str) -> None:
  """Removes all failures of a name, within a transaction."""
  table = schema.attempts
  digest = _digest(names.name_key(name))
  connection.execute(
    sa.delete(table).where(
      sa.or_(
        table.c.key == f"name:{digest}", table.c.key.like(f"pair:{digest}:%")
      )
    )
  )


def _limits(name: str, address: str) -> dict[str, int]:
  """Returns key → largest number of failures for a log-in."""
  try:
    host = ipaddress.ip_address(address)
    if host.version == 6 and host.ipv4_mapped is not None:
      host = host.ipv4_mapped
    # One subscriber has a whole /64 of IPv6 addresses.
    prefix = 32 if host.version == 4 else 64
    address = str(ipaddress.ip_network((host, prefix), strict=False))
  except ValueError:
    pass
  name, address = _digest(names.name_key(name)), _digest(address)
  return {
    f"pair:{name}:{address}": MAX_FAILURES_OF_PAIR,
    f"name:{name}": MAX_FAILURES_OF_NAME,
    f"address:{address}": MAX_FAILURES_OF_ADDRESS,
  }


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
