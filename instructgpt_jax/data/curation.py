"""Curation of prompts as in the paper's appendix A. Pure: records to records.

Every function gives (kept records, {reason: count of what was dropped}).
"""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from instructgpt_jax import config
from instructgpt_jax.data import transforms
from instructgpt_jax.data.records import (
  SPLITS,
  Demonstration,
  Document,
  Prompt,
  Ranking,
  Turn,
)
from instructgpt_jax.data.tokenizer import Tokenizer
from instructgpt_jax.errors import UserError

Counts = dict[str, int]
_P = TypeVar("_P", Prompt, Demonstration, Ranking)
_R = TypeVar("_R", Prompt, Demonstration, Ranking, Document)
_BLANKS = re.compile(r"\s+")
PART_CHARS = 20_000

DUPLICATE = "duplicate records"
PREFIX = "prompts with the prefix of another"
USER_LIMIT = "prompts over the limit of a user"
LONG = "prompts over the token limit"


def normalised(text: str) -> str:
  """Lower case with every run of blanks as one space."""
  return _BLANKS.sub(" ", text).strip().lower()


def _whole(turns: Sequence[Turn]) -> str:
  return normalised("\n".join(t.text for t in turns))


def _first_user_turn(turns: Sequence[Turn]) -> str:
  return next((normalised(t.text) for t in turns if t.role == "user"), "")


def user_of(record: _P) -> str:
  """Whose prompt it is: the user id, or else the prompt's first user turn.

  So all records of a conversation that start alike belong together.
  """
  if record.user_id:
    return "user:" + record.user_id
  return "prompt:" + _first_user_turn(record.turns)


def hash_fraction(key: str) -> float:
  """A number in [0, 1) that depends on the text alone, on every machine."""
  digest = hashlib.sha256(key.encode("utf-8")).digest()
  return int.from_bytes(digest[:8], "big") / 2.0**64


def _split_name(key: str, data: config.Data) -> str:
  place = hash_fraction(key)
  if place < data.valid_fraction:
    return "valid"
  return "test" if place < data.valid_fraction + data.test_fraction else "train"


def split_of(record: _P, data: config.Data) -> str:
  """The split of a record: what its file says, or else its user's hash.

  It depends on nothing but the user (or prompt), so the same user is on the
  same side in every file and every run.
  """
  return record.split or _split_name(user_of(record), data)


def _identity(record: Prompt | Demonstration | Ranking) -> object:
  if isinstance(record, Demonstration):
    return record.completion
  if isinstance(record, Ranking):
    return (record.completions, record.ranks, record.labeler_id)
  return None


def deduplicate(
  records: Iterable[_P], data: config.Data
) -> tuple[list[_P], Counts]:
  """Drops prompts that share a long prefix, and records that are repeated.

  Two prompts are the same when their conversations, in lower case and with
  single spaces, agree in the first `data.common_prefix_chars` characters, or,
  where one of them is shorter, altogether. The first prompt of a group stays. A
  demonstration or ranking with exactly that prompt stays too unless it is the
  same in everything: several labelers may have worked on one prompt.
  """
  limit = data.common_prefix_chars
  first: dict[str, str] = {}
  seen: set[tuple[str, object]] = set()
  kept: list[_P] = []
  counts: collections.Counter[str] = collections.Counter()
  for record in records:
    whole = _whole(record.turns)
    identity = (whole, _identity(record))
    prefix = whole[:limit] if limit else whole
    if first.setdefault(prefix, whole) != whole:
      counts[PREFIX] += 1
    elif identity in seen:
      counts[DUPLICATE] += 1
    else:
      seen.add(identity)
      kept.append(record)
  return kept, dict(counts)


def limit_users(
  records: Iterable[_P], data: config.Data
) -> tuple[list[_P], Counts]:
  """Keeps the first `data.max_prompts_per_user` distinct prompts of each user.

  Records without a user id have no limit.
  """
  prompts: dict[str, set[str]] = collections.defaultdict(set)
  kept: list[_P] = []
  dropped = 0
  for record in records:
    mine = prompts[record.user_id]
    whole = _whole(record.turns) if record.user_id else ""
    if whole and whole not in mine and len(mine) >= data.max_prompts_per_user:
      dropped += 1
      continue
    mine.add(whole)
    kept.append(record)
  return kept, {USER_LIMIT: dropped} if dropped else {}


def drop_long(
  records: Sequence[_P], tokenizer: Tokenizer, data: config.Data
) -> tuple[list[_P], Counts]:
  """Drops prompts of more than `data.max_prompt_tokens`, tags included."""
  encoded = transforms.encode_prompts(
    [r.turns for r in records], tokenizer, data
  )
  kept = [
    r
    for r, ids in zip(records, encoded, strict=True)
    if len(ids) <= data.max_prompt_tokens
  ]
  dropped = len(records) - len(kept)
  return kept, {LONG: dropped} if dropped else {}


def split_records(
  records: Iterable[_P], data: config.Data
) -> dict[str, list[_P]]:
  """{"train", "valid", "test"} -> records, by `split_of`."""
  result: dict[str, list[_P]] = {name: [] for name in SPLITS}
  for record in records:
    result[split_of(record, data)].append(record)
  return result


def require(
  splits: dict[str, list[_R]], counts: Counts, field: str, split: str = "train"
) -> list[_R]:
  """The records of one split, or an error that says where they went."""
  if splits[split]:
    return splits[split]
  went = ", ".join(f"{n} {why}" for why, n in counts.items())
  where = ", ".join(f"{len(v)} in {k}" for k, v in splits.items() if v)
  raise UserError(
    f"curation leaves no record for {split}"
    f" ({'; '.join(filter(None, (went, where))) or 'there were none'})",
    field=field,
    fix="raise data.max_prompt_tokens"
    if counts.get(LONG)
    else "give more records, or change the shares of the splits",
  )


# Personal information.

_EMAIL = re.compile(
  r"[A-Za-z0-9][\w.+%-]*@[A-Za-z0-9](?:[A-Za-z0-9-]*\.)+[A-Za-z]{2,}"
)
_PHONE = re.compile(
  r"""(?<![\w.+-])(?:
    (?:\+|00)[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}
    | (?:1[ .-]?)?\([2-9]\d\d\)[ .-]?\d{3}[ .-]?\d{4}
    | (?:1[ .-])?[2-9]\d\d[ .-][2-9]\d\d[ .-]\d{4}
    | 0[1-9]\d{1,3}[ -]\d{3,4}[ -]\d{3,4}
    | 07\d{3}[ ]?\d{6}
  )(?![\w-]|\.\d)""",
  re.VERBOSE,
)
_CARD = re.compile(
  r"(?<![\d.,-])(?:[2-6]\d{12,18}|[2-6]\d{3}(?:[ -]\d{4}){3}"
  r"|3\d{3}[ -]\d{6}[ -]\d{5})(?![\d-]|[.,]\d)"
)
_SSN = re.compile(
  r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\d-])"
)
_IBAN = re.compile(
  r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"
)
_ID_NUMBER = re.compile(
  r"\b(?:passport|driver'?s? licen[cs]e|licen[cs]e|national id|identity card|id"
  r" card|tax id|ssn|social security)(?: number| no\.?| #)?(?: is|:| =|#)*\s*"
  r"[A-Z]{0,3}\d[\d -]{4,}\d\b",
  re.IGNORECASE,
)
# A line that is nothing but @word is a decorator.
_HANDLE = re.compile(
  r"(?<![\w@./+-])(?!(?<=\n)@\w+[ ]*\n)@([A-Za-z_]\w{2,29})\b(?![(@\w]|\.\w)"
)
_CODE_AT = frozenset(
  """media import keyframes charset supports page namespace include mixin
  override deprecated param return returns throws author since see todo test
  property staticmethod classmethod dataclass abstractmethod autowired
  component service entity inject decorator interface end class implementation
  protocol selector synthesize""".split()
)
_USER_PAGE = re.compile(
  r"""(?<![\w.-])(?:https?://)?(?:[\w-]+\.)?(?:
    (?:twitter|x|github|instagram|tiktok|facebook|medium|patreon|soundcloud)
      \.com/(?!(?:home|about|login|search|explore|help|watch|share|intent|tag
      |hashtag|topics|features|pricing|p|i|policies|privacy|terms)\b)@?[\w.-]+
    | linkedin\.com/in/[\w%-]+
    | reddit\.com/u(?:ser)?/[\w-]+
    | youtube\.com/(?:@|user/|c/)[\w.-]+
    | t\.me/[\w]+
  )""",
  re.VERBOSE | re.IGNORECASE,
)
_HOME_PAGE = re.compile(
  r"(?:https?|ftp)://(?:[^\s/@:]+(?::[^\s/@]*)?@|[^\s/]+/(?:~|users?/|u/"
  r"|profiles?/|members?/|people/)[\w.-]+)",
  re.IGNORECASE,
)
_IPV4 = re.compile(
  r"(?<![\w.-])(?!0\.|127\.|255\.|192\.168\.|10\.)"
  r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)"
  r"(?![\w-]|\.\d)"
)


def _luhn(text: str) -> bool:
  digits = [int(c) for c in text if c.isdigit()]
  if len(set(digits)) == 1 or len(digits) < 13:
    return False
  doubled = [d * 2 - 9 * (d > 4) for d in digits[-2::-2]]
  return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban(text: str) -> bool:
  code = text.replace(" ", "")
  if not 15 <= len(code) <= 34:
    return False
  moved = "".join(str(int(c, 36)) for c in code[4:] + code[:4])
  return int(moved) % 97 == 1


def _address(text: str) -> bool:
  """Four short numbers are a version more often than an address."""
  return sum(len(part) > 1 for part in text.split(".")) >= 2


def _handle(text: str) -> bool:
  return text.lstrip("@").lower() not in _CODE_AT


def _any(
  pattern: re.Pattern[str], check: Callable[[str], bool] = lambda text: True
) -> Callable[[str], bool]:
  return lambda text: any(check(m.group()) for m in pattern.finditer(text))


_HAS_DIGITS = re.compile(r"\d\D{0,3}\d")
_DETECTORS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
  # What has to be in a text before the costly pattern is tried.
  ("e-mail address", "@", _any(_EMAIL)),
  ("user name", "@", _any(_HANDLE, _handle)),
  ("page of a user", "/", _any(_USER_PAGE)),
  ("page of a user", "://", _any(_HOME_PAGE)),
  ("card number", "", _any(_CARD, _luhn)),
  ("id number", "", _any(_SSN)),
  ("id number", "", _any(_IBAN, _iban)),
  ("id number", "", _any(_ID_NUMBER)),
  ("phone number", "", _any(_PHONE)),
  ("network address", "", _any(_IPV4, _address)),
)


def personal_information(text: str) -> str:
  """What kind of personal information a text holds, "" for none.

  Looked for: e-mail addresses, phone numbers, card numbers (with their check
  digit), id numbers (social security, IBAN with its check sum, passport and the
  like after their name), user names (@name), pages of users and IP addresses.
  """
  has_digits = _HAS_DIGITS.search(text) is not None
  for name, needs, found in _DETECTORS:
    if (needs in text if needs else has_digits) and found(text):
      return name
  return ""


def _texts(record: Prompt | Demonstration | Ranking) -> Iterator[str]:
  for turn in record.turns:
    yield turn.text
  if isinstance(record, Demonstration):
    yield record.completion
  elif isinstance(record, Ranking):
    yield from record.completions


def drop_personal(records: Iterable[_P]) -> tuple[list[_P], Counts]:
  """Drops records with personal information in prompt or completions."""
  kept: list[_P] = []
  counts: collections.Counter[str] = collections.Counter()
  for record in records:
    kinds = map(personal_information, _texts(record))
    kind = next(filter(None, kinds), "")
    if kind:
      counts[f"records with personal information: {kind}"] += 1
    else:
      kept.append(record)
  return kept, dict(counts)


def curate(
  records: Sequence[_P],
  data: config.Data,
  tokenizer: Tokenizer | None = None,
) -> tuple[dict[str, list[_P]], Counts]:
  """All of it, in the paper's order.

  Dedupe, limit per user, split by user, personal information out of the train
  split, prompts over the token limit out of all (given a tokenizer).

  Returns:
    {"train", "valid", "test"} -> records, and counts of what was dropped.
  """
  total: collections.Counter[str] = collections.Counter()

  def count(result: tuple[list[_P], Counts]) -> list[_P]:
    total.update(result[1])
    return result[0]

  kept = count(deduplicate(records, data))
  kept = count(limit_users(kept, data))
  if tokenizer is not None:
    kept = count(drop_long(kept, tokenizer, data))
  splits = split_records(kept, data)
  if data.filter_personal:
    splits["train"] = count(drop_personal(splits["train"]))
  return splits, dict(total)


def _parts(text: str) -> Iterator[str]:
  """A long text cut at paragraphs, or at lines where it has none."""
  while len(text) > 2 * PART_CHARS:
    cut = text.rfind("\n\n", PART_CHARS // 2, PART_CHARS) + 2
    if cut < 2:
      cut = text.rfind("\n", PART_CHARS // 2, PART_CHARS) + 1
    cut = cut or PART_CHARS
    yield text[:cut]
    text = text[cut:]
  if text.strip():
    yield text


def split_documents(
  documents: Iterable[Document], data: config.Data
) -> dict[str, list[Document]]:
  """{"train", "valid", "test"} -> documents, by a hash of their text.

  A document whose file gives its split stays whole. Another one of more than
  40,000 characters (a book) is cut at paragraphs into parts of about 20,000,
  each of which is split for itself. With two parts or more, train and (where
  its share is not 0) valid get at least one.
  """
  result: dict[str, list[Document]] = {name: [] for name in SPLITS}
  hashed = 0
  for document in documents:
    if document.split:
      result[document.split].append(document)
      continue
    for part in _parts(document.text):
      hashed += 1
      result[_split_name("text:" + normalised(part), data)].append(
        Document(text=part, origin=document.origin)
      )
  for needy, share in (("train", 1.0), ("valid", data.valid_fraction)):
    if hashed >= 2 and share and not result[needy]:
      donors = [n for n in SPLITS if len(result[n]) > 1]
      if donors:
        donor = max(donors, key=lambda n: len(result[n]))
        result[needy].append(result[donor].pop())
  return result
