"""Finds personal information in a text.

Every pattern is linear in the length of the text: what repeats is bounded, and
no two parts of a pattern can match the same characters in many ways. Code is
not personal information: `@name` in Ruby, `@list` in Perl, decorators, npm
scopes and links to repositories stay.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Iterator

# E-mail addresses.

_AT_DOMAIN = re.compile(
  r"(?<=[\w.+%-])@(?=[A-Za-z0-9])"
  r"((?:[A-Za-z0-9-]{1,63}\.){1,8})([A-Za-z]{2,24})(?![A-Za-z0-9-]|\.\w|\()"
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
_GENERIC_DOMAINS = frozenset(
  """com org net edu gov mil int info biz name pro aero museum coop jobs mobi
  app dev online site tech cloud blog email""".split()
)


def _local_part(text: str, at: int) -> str:
  """What stands before the @ at an index, at most 64 characters."""
  start = at
  while (
    start > 0 and at - start < _LOCAL_CHARS and _LOCAL.match(text[start - 1])
  ):
    start -= 1
  return text[start:at]


def _has_email(text: str) -> bool:
  code: _CodeLines | None = None
  for match in _AT_DOMAIN.finditer(text):
    raw = _local_part(text, match.start())
    before = text[
      max(0, match.start() - len(raw) - 80) : match.start() - len(raw)
    ]
    if _CONNECTION.search(before):
      continue
    local = raw.strip(".+%-_").lower()
    if not local or local in _SERVICES or not re.search(r"[^\W_]", local):
      continue
    top = match.group(2).lower()
    if len(top) == 2 or top in _GENERIC_DOMAINS:
      return True
    # x@self.weight is a matmul, jane@studio.photography an address.
    code = code or _CodeLines(text)
    if match.start() not in code:
      return True
  return False


# Code.

_CODE_LINE = re.compile(
  r"""^[ \t]*(?:
    (?:(?:async|public|private|protected|static|export|abstract|final)[ ]){0,3}
      (?:def|class|module|struct|enum|trait|impl|interface|namespace|package|sub
      |func|fn|function|fun)[ ]+[A-Za-z_][\w.:!?]{0,80}[ ]*
      (?:[(<:{;].*|do|extends\b.*|implements\b.*)?$
    | (?:end|else|begin|ensure|rescue|try:|else:|fi|done|esac)[;,)]?[ \t]*$
    | (?:elif|elsif|except|catch|if|for|while|with|foreach|switch|unless)\b
      .{0,200}(?:[:{]|\bdo|\bthen)[ \t]*$
    | (?:from[ ]+[\w.]+[ ]+import\b|import[ ]+[\w.*{"'][^.!?]{0,200}$)
    | (?:export|require|require_once|include|using|use)\b[ (]+['"\w]
      [^ ]{0,100}$
    | (?:\#include|\#define|\#!/|//|/\*|<\?php|\\[a-zA-Z@]+[\[{@]|\\make)
    | (?:SELECT|INSERT[ ]INTO|UPDATE|DELETE[ ]FROM|DECLARE|CREATE|ALTER|EXEC)\b
    | (?:declare|set|select|exec)[ ]+@\w
    | [\w$@%.\[\]:*&<>'"]{1,60}(?:[ ][\w$@%.\[\]:*&<>'"]{1,60}){0,3}[ ]*
      (?:[-+*/|&.:%^]|\|\||&&)?=[ ]?(?![=\s])
    | [\w.:>$@-]{1,80}\([^()]{0,200}\)[;,]?[ \t]*$
    | @\w+[ ]+(?:[\w.]{1,60}\(|[\d"':\[{]|(?:public|private|protected|static
      |final|class|void|abstract|override|func|var|let|val|weak|interface|fun|int
      |double|float|boolean|bool|string)\b)
    | (?:my|our|local|push|unshift|splice|foreach|puts|print|say|return|echo)
      [ (]+[\\]?[@%$]\w
    | [$>][ ]\w
  )
  | ^\t@\w
  | [;{}][ \t]*$
  | [\w)\]]\(\) | \w->\w | [^-\s]?=>[ ] | \w::\w | [^=!<>]==[^=] | &&[ ]
  | \$[A-Za-z_]\w{0,60}[ ]*[;=)\[-] | </[A-Za-z] | =[ ]*@\w
  | [@$%]\w{1,60}[ ]*[\[{=] | \\@\w | @\w{1,60}\)[ ]*[;{]
  | ['"]@[\w-]{1,60}/""",
  re.VERBOSE,
)  # fmt: skip
_FENCE = re.compile(r"^[ \t]{0,8}(?:```|~~~)")
_MAX_LINE = 2000


def _is_code(line: str) -> bool:
  return _CODE_LINE.search(line[:_MAX_LINE]) is not None


class _CodeLines:
  """Which characters of a text stand in code.

  Code is what stands between fences (``` or ~~~), and each run of lines without
  an empty line of which one looks like code. A run that is indented and follows
  code belongs to it.
  """

  def __init__(self, text: str):
    self._spans: list[tuple[int, float]] = []
    fenced = before = False
    for start, end, lines in _runs(text):
      code = before and lines[0][:1] in (" ", "\t")
      inside = fenced
      for line in lines:
        if _FENCE.match(line):
          fenced = not fenced
          inside = True
      before = code or inside or any(map(_is_code, lines))
      if before:
        self._spans.append((start, end))

  def __contains__(self, index: int) -> bool:
    place = bisect.bisect_right(self._spans, (index, math.inf)) - 1
    return place >= 0 and index < self._spans[place][1]


def _runs(text: str) -> Iterator[tuple[int, int, list[str]]]:
  """(start, end, lines) of each run of lines that are not empty."""
  start, at, lines = 0, 0, []
  for line in text.split("\n"):
    if line.strip():
      start = start if lines else at
      lines.append(line)
    elif lines:
      yield start, at, lines
      lines = []
    at += len(line) + 1
  if lines:
    yield start, at, lines


# User names.

_HANDLE = re.compile(
  r"(?<![\w@./+\\$%&*`=\[{-])@([A-Za-z_]\w{2,29})(?![(@\w=\[{<\\]|[./:]\w)"
)
# A line that is nothing but @word, above another line of code.
_DECORATOR = re.compile(
  r"[ \t]*@\w{1,60}[ \t]*\n[ \t]*(?:@\w|(?:async|def|class|func|fun|public"
  r"|private|protected|static|final|export|const|var|let|val|void|override"
  r"|abstract|interface|struct|type|enum|data|suspend)\b"
  r"|[\w<>\[\]]{1,40} \w{1,60}\()"
)
_CODE_NAMES = frozenset(
  """media import keyframes charset supports page namespace include mixin
  override deprecated param return returns throws author since see todo test
  property staticmethod classmethod dataclass abstractmethod autowired
  component service entity inject decorator interface end class implementation
  protocol selector synthesize name names list lists array arrays hash value
  values items item data user users var vars variable count total index result
  results args argv inc id ids key keys input output decorated decorator before
  beforeeach after aftereach before_all nullable notnull state binding published
  objc escaping observable injectable controller restcontroller repository bean
  configuration query mutation tailwind apply layer font-face example
  suppresswarnings safevarargs functionalinterface lru_cache cached_property
  wraps contextmanager pytest fixture jit njit echo rest self time show assert
  everyone here channel all daily weekly hourly monthly yearly annually midnight
  reboot""".split()
)


def _has_handle(text: str) -> bool:
  code: _CodeLines | None = None
  for match in _HANDLE.finditer(text):
    if match.group(1).lower() in _CODE_NAMES:
      continue
    line = (
      text.rfind("\n", max(0, match.start() - _MAX_LINE), match.start()) + 1
    )
    if _DECORATOR.match(text, line):
      continue
    code = code or _CodeLines(text)
    if match.start() not in code:
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
      [A-Za-z0-9][\w.-]{{0,60}}/?(?![\w./-]*[\w-])
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

# Numbers.

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
  r" card|tax id|ssn|social security)(?: number| no\.?| #)?(?: is|:| =|#){0,4}"
  r"\s{0,4}[A-Z]{0,3}\d[\d -]{4,24}(?<=\d)\b",
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


def _any(
  pattern: re.Pattern[str], check: Callable[[str], bool] = lambda text: True
) -> Callable[[str], bool]:
  return lambda text: any(check(m.group()) for m in pattern.finditer(text))


_HAS_DIGITS = re.compile(r"\d\D{0,3}\d")
DETECTORS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
  # (kind, what a text must contain before the detector is tried, detector)
  ("e-mail address", "@", _has_email),
  ("user name", "@", _has_handle),
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
  """Names the kind of personal information that a text has; "" for none.

  The kinds: e-mail addresses, phone numbers, card numbers (with their check
  digit), id numbers (social security, IBAN with its check sum, passport and the
  like after their name), user names (@name), pages of users and IP addresses.
  """
  has_digits = _HAS_DIGITS.search(text) is not None
  for kind, needs, detect in DETECTORS:
    if (needs in text if needs else has_digits) and detect(text):
      return kind
  return ""
