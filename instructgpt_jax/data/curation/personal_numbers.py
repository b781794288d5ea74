"""Finds phone, card and id numbers and IP addresses in a text.

Every pattern is linear in the length of the text: what repeats is bounded.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from instructgpt_jax.data.curation.code_spans import CodeSpans, is_operand

# Words around a number. Each check looks at no more than this many characters.
_NEAR = 40
_PHONE_CUE = re.compile(
  r"""\b(?:
    (?:call|text|phone|ring|reach|dial|message|whatsapp)(?:[ ]\w{1,12}){0,2}
      [ ](?:at|on)
    | (?:tele)?phone | tel | mobile | cell(?:phone)? | fax | whatsapp | dial
    | my(?:[ ]\w{1,12})?[ ]number | call | text | ring
  )\.?(?:[ ](?:numbers?|no\.?|\#|me|us|is|are)){0,3}[ ]?[:=]?[ ]?\Z""",
  re.VERBOSE | re.IGNORECASE,
)
# A number after these words counts or names a thing.
_OTHER_CUE = re.compile(
  r"\b(?:rows?|orders?|ids?|items?|lines?|codes?|invoice|serial|parts?|ref"
  r"|ticket|isbn|sku|numbers|binary|decimal|hex|octal|integers?|version|release"
  r"|build|a/c|account|convert)(?: no\.?| number| #)?[ :#]{0,3}\Z",
  re.IGNORECASE,
)
_CALCULATION_CUE = re.compile(
  r"(?:\b(?:compute|calculate|evaluate|subtract|simplify|solve|what is|what's"
  r"|how much is|result (?:of|is)|value of|difference)(?: the)?[:\s]{1,4}"
  r"|[\w)][ ]?[+*×÷^][ ]?)\Z",
  re.IGNORECASE,
)
_CALCULATION_AFTER = re.compile(
  r" ?(?:[+*×÷^=] ?[-\d(?]|= ?(?:\n|\Z)|equals\b)"
)
# +1234 below a line that is a number: a sum in columns.
_NUMBER_ABOVE = re.compile(r"(?:\A|\n)[ ]{0,8}\d{1,20}[ ]{0,4}\n[ ]{0,8}\Z")
_NUMBER_BEFORE = re.compile(r"\d[ ]{1,8}\Z")
_NUMBER_AFTER = re.compile(r"[ ]{1,8}\d")


def _around(match: re.Match[str]) -> tuple[str, str]:
  """Returns the text that stands before and after a match."""
  text, (start, end) = match.string, match.span()
  return text[max(0, start - _NEAR) : start], text[end : end + _NEAR]


def _in_calculation(match: re.Match[str]) -> bool:
  before, after = _around(match)
  return bool(
    _CALCULATION_CUE.search(before) or _CALCULATION_AFTER.match(after)
  )


# Phone numbers.

# The country codes that are assigned.
_COUNTRY = (
  r"(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
  r"|(?:2[1-689]|3[578]|42|5[09]|6[789]|8[058]|9[679])\d)"
)
_PHONE = re.compile(
  rf"""(?<![\w.+-])(?:
    (?:\+{_COUNTRY}[ .-]?|00{_COUNTRY}[ .-])
      (?:\(\d{{1,4}}\)[ .-]?)?\d(?:[ .-]?\d){{6,11}}
    | (?:1[ .-]?)?\([2-9]\d\d\)[ .-]?\d{{3}}[ .-]?\d{{4}}
    | (?:1[ .-])?[2-9]\d\d[ .-][2-9]\d\d[ .-]\d{{4}}
    | 0[1-9]\d{{1,3}}[ -]\d{{3,4}}[ -]\d{{3,4}}
    | 07\d{{3}}[ ]?\d{{6}}
    | 0[1-9](?P<separator>[ .-])\d\d(?:(?P=separator)\d\d){{3}}
  )(?![\w-]|\.\d)""",
  re.VERBOSE,
)
_AFTER_CUE = re.compile(
  rf"""(?<![\w.+-])(?:
    (?:\+|00){_COUNTRY}[ .-]?\d(?:[ .-]?\d){{6,11}}
    | (?:1[ .-]?)?[2-9]\d\d[ .-]?\d{{3}}[ .-]?\d{{4}}
    | 0[1-9]\d(?:[ /-]?\d){{6,8}}
  )(?![\w-]|\.\d)""",
  re.VERBOSE,
)
_MAX_PHONE_DIGITS = 13


def _digits(text: str) -> list[int]:
  return [int(c) for c in text if c.isdecimal()]


def _is_series(text: str) -> bool:
  """Reports whether numbers rise in equal steps, as 05 10 15 20 25 do."""
  numbers = [int(part) for part in re.findall(r"\d+", text)]
  steps = {b - a for a, b in zip(numbers, numbers[1:], strict=False)}
  return len(numbers) > 2 and len(steps) == 1


def _is_phone(match: re.Match[str]) -> bool:
  number = match.group()
  before, after = _around(match)
  if _PHONE_CUE.search(before):
    return True
  if _OTHER_CUE.search(before) or _in_calculation(match):
    return False
  digits = _digits(number)
  if len(digits) > _MAX_PHONE_DIGITS or set(digits) <= {0, 1}:
    return False
  if _is_series(number) or (
    number[1:].isdecimal() and _NUMBER_ABOVE.search(before)
  ):
    return False
  # A row of a table of numbers.
  return not (
    " " in number
    and number[0] not in "+("
    and (_NUMBER_BEFORE.search(before) or _NUMBER_AFTER.match(after))
  )


def _has_phone(text: str) -> bool:
  code: CodeSpans | None = None
  for match in _PHONE.finditer(text):
    if _is_phone(match):
      code = code or CodeSpans(text)
      if match.start() not in code or not is_operand(text, match.start()):
        return True
  return any(
    _PHONE_CUE.search(_around(match)[0]) for match in _AFTER_CUE.finditer(text)
  )


# Card and id numbers.

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
  r"\b(passport|driv(?:er['’]?s?|ing) licen[cs]e|licen[cs]e|national id"
  r"|identity card|id card|tax id|ssn|social security)"
  r"((?: number| no\.?| #)?(?: is|:| =|#){0,4})"
  r"\s{0,4}([A-Z]{0,3}\d[\d -]{4,24}(?<=\d))\b",
  re.IGNORECASE,
)
_YEARS = re.compile(r"(?:19|20)\d\d(?:[ -]{1,3}(?:19|20)\d\d)*\Z")
_DATE = re.compile(r"(?:19|20)\d\d[ -]?(?:0\d|1[0-2])[ -]?(?:[0-2]\d|3[01])\Z")


def _is_card(match: re.Match[str]) -> bool:
  digits = _digits(match.group())
  if len(set(digits)) == 1 or len(digits) < 13:
    return False
  doubled = [d * 2 - 9 * (d > 4) for d in digits[-2::-2]]
  checked = (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
  # 2010 2011 2012 2013 are years.
  return (
    checked and not _is_series(match.group()) and not _in_calculation(match)
  )


def _is_ssn(match: re.Match[str]) -> bool:
  return not _in_calculation(match)


def _is_iban(match: re.Match[str]) -> bool:
  code = match.group().replace(" ", "")
  if not 15 <= len(code) <= 34:
    return False
  moved = "".join(str(int(c, 36)) for c in code[4:] + code[:4])
  return int(moved) % 97 == 1


def _is_id_number(match: re.Match[str]) -> bool:
  name, marker, number = match.groups()
  if _YEARS.match(number):
    return False
  if name.lower() not in ("license", "licence"):
    return True
  # MIT License 20230101 is a version of a licence.
  if re.search(r"n|#", marker, re.IGNORECASE):
    return True
  is_named = bool(marker.strip()) or number[0].lower() not in "v0123456789"
  return is_named and not _DATE.match(number)


# IP addresses.

_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")


def _is_ip_address(match: re.Match[str]) -> bool:
  # Four short numbers are a version more often than an address.
  if sum(len(part) > 1 for part in match.group().split(".")) < 2:
    return False
  if _OTHER_CUE.search(_around(match)[0]):
    return False
  try:
    address = ipaddress.IPv4Address(match.group())
  except ValueError:
    return False
  return address.is_global and not address.is_multicast


def _any(
  pattern: re.Pattern[str], check: Callable[[re.Match[str]], bool]
) -> Callable[[str], bool]:
  return lambda text: any(map(check, pattern.finditer(text)))


# (kind, detector), in the order in which they are tried.
NUMBER_DETECTORS: tuple[tuple[str, Callable[[str], bool]], ...] = (
  ("card number", _any(_CARD, _is_card)),
  ("id number", _any(_SSN, _is_ssn)),
  ("id number", _any(_IBAN, _is_iban)),
  ("id number", _any(_ID_NUMBER, _is_id_number)),
  ("phone number", _has_phone),
  ("network address", _any(_IPV4, _is_ip_address)),
)
