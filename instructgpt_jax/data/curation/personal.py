"""Finds personal information in a text.

Every pattern is linear in the length of the text: what repeats is bounded, and
no two parts of a pattern can match the same characters in many ways. Code is
not personal information: `@name` in Ruby, `@list` in Perl, decorators, matrix
products, npm scopes and links to repositories stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from instructgpt_jax.data.curation.code_spans import CodeSpans, is_operand
from instructgpt_jax.data.curation.drops import PERSONAL, Drops
from instructgpt_jax.data.curation.personal_handles import has_handle
from instructgpt_jax.data.curation.personal_numbers import NUMBER_DETECTORS
from instructgpt_jax.data.records import Demonstration, Prompt, Ranking, replies

_P = TypeVar("_P", Prompt, Demonstration, Ranking)

# E-mail addresses.

_AT_DOMAIN = re.compile(
  r"(?<=[\w.+%-])@(?=[^\W_])"
  r"((?:(?:[^\W_]|-){1,63}\.){1,8})([A-Za-z]{2,24})"
  r"(?![A-Za-z0-9-]|_\w|\.\w|[(\[])"
)
_LOCAL_CHARS = 64
# postgres://name:password@host: the password is no mailbox.
_CONNECTION = re.compile(r"://[^\s/@:]{1,64}:\Z")
_LOCAL = re.compile(r"[\w.+%-]")
# Accounts of machines and services: git@github.com is part of a clone command.
_SERVICES = frozenset(
  """git hg svn root ubuntu admin debian centos pi ec2-user noreply no-reply
  donotreply do-not-reply""".split()
)
_COUNTRIES = frozenset(
  """ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi
  bj bm bn bo br bs bt bw by bz ca cc cd cf cg ch ci ck cl cm cn co cr cu cv cw
  cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo fr ga gb gd ge
  gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in
  io iq ir is it je jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb lc li lk lr
  ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx my
  mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt
  pw py qa re ro rs ru rw sa sb sc sd se sg sh si sk sl sm sn so sr ss st su sv
  sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz ua ug uk us uy uz va
  vc ve vg vi vn vu wf ws ye yt za zm zw""".split()
)
_GENERIC_DOMAINS = frozenset(
  """com org net edu gov mil int info biz name pro aero museum coop jobs mobi
  app dev online site tech cloud blog email""".split()
)
# logo@2x.png is a file, getty@tty1.service a unit.
_NOT_DOMAINS = frozenset(
  """png jpg jpeg gif svg webp ico pdf css scss html htm json xml yaml yml toml
  txt csv js jsx ts tsx java cpp service socket timer mount target""".split()
)
# The names that RFC 2606, RFC 6761 and RFC 6762 reserve.
_RESERVED_DOMAIN = re.compile(
  r"(?:\A|\.)(?:test|example|invalid|local|localhost|localdomain|internal"
  r"|example\.(?:[a-z]{2,24}|(?:com?|org|net|ac)\.[a-z]{2}))\Z"
)


def _local_part(text: str, at: int) -> str:
  """Returns the characters before the @ at an index, at most 64."""
  start = at
  while (
    start > 0 and at - start < _LOCAL_CHARS and _LOCAL.match(text[start - 1])
  ):
    start -= 1
  return text[start:at]


def _is_mail_domain(domain: str, top: str) -> bool:
  """Reports whether a domain can receive a person's mail."""
  if not (top.islower() or top.isupper() or top.istitle()):
    return False
  if len(top) == 2 and top.lower() not in _COUNTRIES:
    return False
  if top.lower() in _NOT_DOMAINS:
    return False
  return not _RESERVED_DOMAIN.search(domain.lower())


def _is_matmul(
  text: str, start: int, local: str, domain: str, in_code: bool
) -> bool:
  """Reports whether an "address" at an index is a matrix product.

  In code, x@w.weight is a product, jane@studio.photography an address. Where
  the domain could be either (x@w.net), the code around it decides.
  """
  labels = domain.lower().split(".")
  is_known = len(labels[-1]) == 2 or labels[-1] in _GENERIC_DOMAINS
  if not is_known and (in_code or labels[0] == "self" or len(labels[0]) == 1):
    return True
  if not in_code:
    return False
  if labels[0] in ("self", "this", "cls") or is_operand(text, start):
    return True
  return len(local) == 1 and text[max(0, start - 1) : start] not in tuple(
    "\"'<"
  )


def _has_email(text: str) -> bool:
  code: CodeSpans | None = None
  for match in _AT_DOMAIN.finditer(text):
    raw = _local_part(text, match.start())
    start = match.start() - len(raw)
    if _CONNECTION.search(text[max(0, start - 80) : start]):
      continue
    local = raw.strip(".+%-_").lower()
    if not local or local in _SERVICES or not re.search(r"[^\W_]", local):
      continue
    domain = match.group(1) + match.group(2)
    if not _is_mail_domain(domain, match.group(2)):
      continue
    code = code or CodeSpans(text)
    if not _is_matmul(text, start, local, domain, match.start() in code):
      return True
  return False


# Pages of users.

_SUBDOMAIN = r"(?:(?:www|m|mobile|old|new|[a-z]{2}|[a-z]{2}-[a-z]{2})\.)?"
_NO_USERS = (
  "home|about|login|signup|search|explore|help|watch|share|sharer|intent|tag"
  "|hashtag|topics?|features|pricing|p|i|policies|privacy|terms|dialog|plugins"
  "|tr|docs|developers?|groups|events|pages|marketplace|orgs|settings|sponsors"
  "|notifications|new|apps|security|enterprise|readme|collections|team|contact"
  "|site|join|jobs|legal|hub|business"
)
_USER_PAGE = re.compile(
  rf"""(?<![\w.-])(?:https?://)?{_SUBDOMAIN}(?:
    (?:twitter|x|instagram|tiktok|facebook|medium|patreon|soundcloud)
      \.com/(?!(?:{_NO_USERS})\b)@?[A-Za-z0-9_][\w.-]{{0,60}}
    | (?:github|gitlab)\.com/(?!(?:{_NO_USERS})\b)
      [A-Za-z0-9][\w.-]{{0,60}}/?(?![./]{{0,8}}[\w-])
    | linkedin\.com/in/[\w%-]
    | reddit\.com/u(?:ser)?/[\w-]
    | youtube\.com/(?:@|user/|c/)[\w.-]
    | t\.me/[A-Za-z]\w{{0,60}}
  )""",
  re.VERBOSE | re.IGNORECASE,
)
# https://name:password@host/, and https://host/users/name or /~name. A number
# or {id} in place of the name is the address of an interface.
_HOME_PAGE = re.compile(
  r"(?:https?|ftp)://(?:"
  r"(?!(?:user(?:name)?|login|admin|root|git|foo|guest)[:@])"
  r"[^\s/@:]{1,64}(?::[^\s/@]{0,64})?@[\w.-]"
  r"|(?!localhost|127\.|0\.0\.0\.0|api\.|[\w.-]{0,60}\bapi\b|[^\s/]{1,80}/api/)"
  r"[^\s/]{1,253}/(?:~|users?/|u/|profiles?/|members?/|people/)"
  r"(?!(?:me|new|edit|create|login|register|signin|signup|list|search)\b)"
  r"[A-Za-z_][\w.-]{0,60}(?!\w|[({]))",
  re.IGNORECASE,
)


def _has(pattern: re.Pattern[str]) -> Callable[[str], bool]:
  return lambda text: pattern.search(text) is not None


DETECTORS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
  # (kind, what a text must contain before the detector is tried, detector)
  ("e-mail address", "@", _has_email),
  ("user name", "@", has_handle),
  ("page of a user", "/", _has(_USER_PAGE)),
  ("page of a user", "://", _has(_HOME_PAGE)),
  *((kind, "", detect) for kind, detect in NUMBER_DETECTORS),
)
_HAS_DIGITS = re.compile(r"\d\D{0,3}\d")


def personal_information(text: str) -> str:
  """Names the kind of personal information that a text has; "" for none.

  The kinds: e-mail addresses, phone numbers, card numbers (with their check
  digit), id numbers (social security, IBAN with its check sum, passport and the
  like after their name), user names (@name), pages of users and global IP
  addresses.
  """
  has_digits = _HAS_DIGITS.search(text) is not None
  for kind, needs, detect in DETECTORS:
    if (needs in text if needs else has_digits) and detect(text):
      return kind
  return ""


def _texts(record: Prompt | Demonstration | Ranking) -> Iterator[str]:
  for turn in record.turns:
    yield turn.text
  yield from replies(record)


def drop_personal(records: Iterable[_P]) -> tuple[list[_P], Drops]:
  """Drops records with personal information in prompt or completions."""
  stay: list[_P] = []
  drops = Drops()
  for record in records:
    kinds = map(personal_information, _texts(record))
    kind = next(filter(None, kinds), "")
    if kind:
      drops.drop(f"{PERSONAL}: {kind}", record)
    else:
      stay.append(record)
  return stay, drops
