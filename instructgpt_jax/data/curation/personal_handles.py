"""Finds user names (@jane_doe) in a text, and distinguishes them from code."""

from __future__ import annotations

import re

from instructgpt_jax.data.curation.code_spans import CodeSpans

# Instagram's names have dots: @jane.doe.
_HANDLE = re.compile(
  r"(?<![\w@./+\\$%&*`=\[{-])"
  r"@([A-Za-z_](?:\w{2,29}|\w{0,29}(?:\.[a-z]\w{1,29}){1,3}))"
  r"(?![(@\w=\[{<\\]|[./:]\w)(?=((?:-\w{1,30}){0,3}))"
)
# A line that is nothing but @word, above another line of code.
_DECORATOR = re.compile(
  r"@[\w.]{1,60}[ \t]{0,80}\n[ \t]{0,80}(?:@\w|(?:async|def|class|func|fun"
  r"|public|private|protected|static|final|export|const|var|let|val|void"
  r"|override|abstract|interface|struct|type|enum|data|suspend)\b"
  r"|[\w<>\[\]]{1,40} \w{1,60}\()"
)
_MAX_INDENT = 80
# "@type": is a key of JSON-LD.
_KEY_BEFORE = ('"', "'")
_KEY_AFTER = re.compile(r"""["']\s{0,4}(?::|=>)""")
_CODE_NAMES = frozenset(
  """abstractmethod after_all aftereach all annually apply args argv array
  arrays assert author autoreleasepool autowired available background base
  bean before before_all beforeall beforeeach behaviour behavior benchmark
  binding blur body brief btime builder cached_property callback cfunction
  change channel charset class classmethod click column component composable
  computed configuration container content contextmanager controller count
  counter counter-style csrf custom-media custom-variant daily dataclass
  decorated decorator dependabot deprecated derive description discardableresult
  doc dynamic echo edoc each else empty end endauth endcode endforeach endif
  endsection entity enum error escaping everyone everywhere example except
  extend extends fastmath file fixture focus font-face font-feature-values
  font-palette-values foreach forelse forward function functionalinterface
  functools generated getter graph hash here home hostbinding hostlistener
  hourly id ids if imageset impl implementation import inbounds inc include
  index inject injectable inline inlinable input item items jit join
  jvmstatic key keydown keyframes keypress keys keyup kwdef layer layout link
  list lists lombok lru_cache lunch macro main mainactor map media method
  midnight mixin module moduledoc monthly mousedown mouseover mutation name
  names namespace newtype night nightly njit noinline nonnull noon notnull
  nullable objc observable observedobject office output override package page
  param params parcelize people position-try private property protocol
  published push pytest query readonly reboot repository requestmapping res
  rest restcontroller result results return returns safevarargs scope
  screen section see selector self sendable service show signature simd since
  slot source spec spy staticmethod state stateobject styleset submit
  supports suppresswarnings synchronized synthesize tailwind template test
  testable testset theme threads throw throws time todo total track transaction
  transactional try type typedef typing use uses user users utility value
  values var variable variables variant vars version view viewchild vite void
  weekly when while work wraps xmlattribute yearly yield""".split()
)
# The last part of a dotted name of code: @order.total, @user.save.
_MEMBERS = frozenset(
  """add address age all attributes body call class clear close content count
  create data date delete destroy dup each email empty errors execute fetch
  find first format freeze get html id index info items join json key keys last
  length log logger map max merge message method min model name new next nil
  open options params parent path pop present price push quantity read save
  select send set shift show size sort start state status stop string sum text
  title to_s total type update upcase downcase url valid value values
  write""".split()
)

# The words around a handle, in at most this many characters.
_NEAR = 120
_PERSON_BEFORE = re.compile(
  r"""  # style: word
    \b(?:follow(?:ing|ers[ ]of)? | ask | cc | via | hi | hey | hello | dear
    | thanks | thank[ ]you | thx | kudos | ping | dm | pm | credits? | rt
    | tweet | tweets?[ ]by | photos?[ ]by | tell | contact | handle | username
    | twitter | instagram | insta | ig | tiktok | snapchat | snap | telegram
    | discord | slack | github | youtube | venmo | cashapp | threads | mastodon
  )(?:[ ](?:is|to|me|handle|at)){0,2}[ ]?[:,]?[ ]?["'(]?\Z""",
  re.VERBOSE | re.IGNORECASE,
)
_PERSON_AFTER = re.compile(
  r",? (?:(?:on|over on) (?:my )?(?:ig|insta|instagram|twitter|x|tiktok|snap"
  r"|snapchat|telegram|discord|slack|github|youtube|threads)\b"
  r"|(?:says?|said|wrote|writes|tweeted|posted|asked|told|replied|thinks)\b)",
  re.IGNORECASE,
)
_CODE_NOUNS = (
  r"macros?|decorators?|annotations?|directives?|attributes?|at-rules?"
  r"|shorthand|sigils?|syntax|keywords?|variables?|mixins?|modifiers?|prefix"
  r"|operators?|symbols?|instance variables?|pragmas?|npm packages?"
)
_CODE_BEFORE = re.compile(
  rf"\b(?:use|uses|using|apply|applying|annotat(?:e|ed|ing)"
  rf"|decorat(?:e|ed|ing)|denot(?:e|es|ed by)|prefix(?:ed by)?"
  rf"|declar(?:e|ed|ing)|parameters?|arguments?|array|{_CODE_NOUNS})"
  rf"(?: (?:with|as|like|called|named|the|an?|is|are|such as)){{0,2}}"
  rf"[:,]? ?[\"'(]?\Z",
  re.IGNORECASE,
)
_CODE_AFTER = re.compile(
  rf"[\"')]?(?:(?: and| or|,) @\w{{1,30}}){{0,3}} (?:{_CODE_NOUNS})\b",
  re.IGNORECASE,
)
# Weaker nouns, after "the" or "a" before the handle: the @foo method.
_ARTICLE_BEFORE = re.compile(r"\b(?:the|an?|this|your|each) [\"']?\Z", re.I)
_CODE_PART_AFTER = re.compile(
  r"[\"']? (?:tags?|rules?|class|method|function|block|property|parameter"
  r"|argument|module|package|array|field|type|helper|command|import|hook)\b",
  re.IGNORECASE,
)
_LANGUAGE = (
  r"(?:Vue(?:\.?js)?(?: [23])?|Angular|Svelte|Ruby(?: on Rails)?|Rails|Perl"
  r"|Python|Julia|Elixir|Erlang|Java|Kotlin|Scala|Groovy|Swift(?:UI)?|Dart"
  r"|Objective-C|C#|PHP|Laravel|Blade|Razor|ASP\.NET|TypeScript|JavaScript"
  r"|NestJS|Alpine(?:\.js)?|CSS|Sass|SCSS|Less|Tailwind|LaTeX|TeX|JSDoc|Javadoc"
  r"|Doxygen|JSON-LD|T-SQL|SQL(?: Server)?|PowerShell|MATLAB|Octave|Bash|Make"
  r"|Spring(?: Boot)?|JUnit|Lombok|Hibernate|JPA|Django|Flask|Numba|pytest"
  r"|cron)"
)
# The rest of a sentence. Dots of names (@order.total) do not end it.
_SENTENCE = r"(?:[^.!?\n]|[.!?]\w){0,60}"
_LANGUAGE_BEFORE = re.compile(
  rf"\b(?:[Ii]n (?:an? )?{_LANGUAGE}\b{_SENTENCE}"
  rf"|{_LANGUAGE}(?:'s)?[:,]? ?)[\"'(]?\Z"
)
_QUESTION_BEFORE = re.compile(
  r"\b(?:what|how|why|when|does|difference|explain|meaning)\b"
  rf"{_SENTENCE}\Z",
  re.IGNORECASE,
)
_LANGUAGE_AFTER = re.compile(rf"{_SENTENCE} in {_LANGUAGE}\b")


def _is_decorator(text: str, at: int) -> bool:
  indent = text[max(0, at - _MAX_INDENT) : at].rstrip(" \t")
  starts_line = indent.endswith("\n") or (not indent and at < _MAX_INDENT)
  return starts_line and _DECORATOR.match(text, at) is not None


def _is_code_name(match: re.Match[str]) -> bool:
  name = match.group(1).lower()
  parts = name.split(".")
  hyphenated = name + match.group(2)
  if parts[0] in _CODE_NAMES or hyphenated in _CODE_NAMES:
    return True
  return len(parts) > 1 and parts[-1] in _MEMBERS


def _is_about_code(match: re.Match[str]) -> bool:
  """Reports whether the words around a handle say that it is code."""
  text, (start, end) = match.string, match.span()
  before = text[max(0, start - _NEAR) : start]
  after = text[end : end + _NEAR]
  if before.endswith(_KEY_BEFORE) and _KEY_AFTER.match(after):
    return True
  if _PERSON_BEFORE.search(before) or _PERSON_AFTER.match(after):
    return False
  return bool(
    _CODE_BEFORE.search(before)
    or _CODE_AFTER.match(after)
    or (_ARTICLE_BEFORE.search(before) and _CODE_PART_AFTER.match(after))
    or _LANGUAGE_BEFORE.search(before)
    or (_QUESTION_BEFORE.search(before) and _LANGUAGE_AFTER.match(after))
  )


def has_handle(text: str) -> bool:
  """Reports whether a text has the user name of a person, such as @jane_doe."""
  code: CodeSpans | None = None
  for match in _HANDLE.finditer(text):
    if _is_code_name(match) or _is_decorator(text, match.start()):
      continue
    code = code or CodeSpans(text)
    if match.start() not in code and not _is_about_code(match):
      return True
  return False
