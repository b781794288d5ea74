"""Rows of a store, written directly."""

import dataclasses

import sqlalchemy as sa

from instructgpt_jax.labeling import schema
from instructgpt_jax.labeling.people import invitations, users

NOW = 1_800_000_000.0


def add_user(store, name="Ann", role="labeler", now=NOW, **options):
  """Returns a new user whose password is "password of NAME"."""
  token = invitations.invite(store, role, now, **options)
  return invitations.accept_invitation(
    store, token, name, f"password of {name}", now
  )


def add_users(store, count, role="labeler"):
  """Returns new users "user 0", "user 1", …, who cannot log in."""
  with store.begin() as connection:
    return [
      users.User(
        **connection.execute(
          sa.insert(schema.users)
          .values(
            name=f"user {i}",
            name_key=f"user {i}",
            role=role,
            held_out=False,
            password="",
            active=True,
            created_at=NOW,
          )
          .returning(
            *(schema.users.c[f.name] for f in dataclasses.fields(users.User))
          )
        )
        .one()
        ._mapping
      )
      for i in range(count)
    ]


def add_items(
  store, count=1, *, task="ranking", completions=3, overlap=1, gold=None
):
  """Returns the ids of new items."""
  with store.begin() as connection:
    return [
      connection.execute(
        sa.insert(schema.items)
        .values(
          task=task,
          payload={
            "turns": [{"role": "user", "content": f"Prompt {i}"}],
            "completions": [f"Answer {k}" for k in range(completions)],
            "sources": [f"stage {k}" for k in range(completions)],
          },
          kind="generation",
          overlap=overlap,
          gold=gold,
          created_at=NOW,
        )
        .returning(schema.items.c.id)
      ).scalar_one()
      for i in range(count)
    ]
