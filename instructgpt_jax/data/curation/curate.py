"""Curates a source, as in the paper's appendix A."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from instructgpt_jax import configs
from instructgpt_jax.data.curation import drops as drops_lib
from instructgpt_jax.data.curation.dedupe import deduplicate
from instructgpt_jax.data.curation.drops import (
  Drops,
)
from instructgpt_jax.data.curation.personal import (
  drop_personal,
)
from instructgpt_jax.data.curation.splits import Splitter
from instructgpt_jax.data.curation.token_limits import (
  drop_cut,
  drop_long,
)
from instructgpt_jax.data.curation.users import (
  ignore_constant_users,
  limit_users,
)
from instructgpt_jax.data.records import (
  Demonstration,
  Document,
  Prompt,
  Ranking,
)
from instructgpt_jax.data.tokenizers import Tokenizer
from instructgpt_jax.errors import UserError

_P = TypeVar("_P", Prompt, Demonstration, Ranking)
_R = TypeVar("_R", Prompt, Demonstration, Ranking, Document)
_Record = Prompt | Demonstration | Ranking


def prepare(
  records: Sequence[_P], data: configs.Data
) -> tuple[list[_P], Drops]:
  """Applies the steps that need no other source: dedupe, limit per user.

  A limit that the user has set holds for user ids that are ignored later, too.
  """
  stay, drops = deduplicate(records, data)
  if data.is_explicit("max_prompts_per_user"):
    stay, more = limit_users(stay, data)
    drops.add(more)
  stay, more = ignore_constant_users(stay)
  drops.add(more)
  stay, more = limit_users(stay, data)
  drops.add(more)
  return stay, drops


def curate(
  records: Sequence[_P],
  data: configs.Data,
  tokenizer: Tokenizer | None = None,
  others: Iterable[Sequence[_Record]] = (),
) -> tuple[dict[str, list[_P]], Drops]:
  """Curates one source, in the paper's order.

  Dedupe, limit per user, split, prompts over the token limit and completions
  that the cut makes equal out (where a tokenizer is given), personal
  information out of the train split.

  Args:
    records: of the source.
    data: limits and shares.
    tokenizer: counts tokens.
    others: records of the run's other sources. Splits are decided over all.

  Returns:
    {"train", "valid", "test"} -> records, and what was dropped.
  """
  stay, drops = prepare(records, data)
  # The same steps as in their own curation.
  prepared = [prepare(source, data)[0] for source in others]  # type: ignore[type-var]
  splitter = Splitter(stay, data, prepared)
  splits, more = splitter.split(stay)
  drops.add(more)
  drops.remarks += splitter.remarks
  if tokenizer is not None:
    drops.remarks += _left_out(stay, tokenizer)
  for name in splits:
    if tokenizer is not None and splits[name]:
      splits[name], more = drop_long(splits[name], tokenizer, data)
      drops.add(more)
      splits[name], more = drop_cut(splits[name], tokenizer, data)
      drops.add(more)
  if data.filter_personal:
    splits["train"], more = drop_personal(splits["train"])
    drops.add(more)
  return splits, drops


def _left_out(records: Sequence[_P], tokenizer: Tokenizer) -> list[str]:
  """Returns a sentence about system turns that the template does not write."""
  template = tokenizer.template
  if template is None or template.takes_system:
    return []
  count = sum(r.turns[0].role == "system" for r in records)
  if not count:
    return []
  return [
    f"{count} of {len(records)} records have a system turn, which the model's"
    " chat template leaves out; --data.chat_template=false writes it"
  ]


def require(
  splits: dict[str, list[_R]],
  drops: Drops,
  field: str,
  skipped: Mapping[str, int] | None = None,
) -> list[_R]:
  """Returns the train split.

  Raises:
    UserError: it is empty; the error says where the records went.
  """
  if splits["train"]:
    return splits["train"]
  largest = drops_lib.causes(drops, skipped or {}, {})[:1]
  went = ", ".join(f"{n} {why}" for why, n in drops.items())
  where = ", ".join(f"{len(v)} in {k}" for k, v in splits.items() if v)
  remaining = sum(map(len, splits.values()))
  fix = "give records for training: the others are all in valid and test"
  if largest and largest[0].count >= remaining:
    fix = largest[0].fix
  raise UserError(
    "curation leaves no record for train"
    f" ({'; '.join(filter(None, (went, where))) or 'there were none'})",
    field=field,
    fix=fix,
    code="no_training_records",
  )
