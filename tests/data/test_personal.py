"""Personal information is found, code is not, and every pattern is linear."""

import random
import string
import time

import pytest

from instructgpt_jax.data.curation import personal
from instructgpt_jax.data.curation.personal import personal_information

PERSONAL = {
  "e-mail address": [
    "write to jane.doe+x@mail.corp.co.uk now",
    "JANE@CORP.COM",
    "Jane@Corp.Com",
    "<jane@corp.com>",
    "_jane@corp.com_",
    "jürgen@müller.de",
    "写信给jane@corp.com或者打电话",
    "jane@163.com",
    "user@example.com is a placeholder, jane@corp.com is not",
    "Author: Jane Doe <jane@corp.io>\nDate: Mon Jan 1 10:00:00 2024",
    "git config user.email jane@corp.io",
    "EMAIL=jane@corp.net",
    "INSERT INTO users VALUES ('jane@corp.com');",
    "\\author{Jane \\email{jane@corp.de}}",
    "- email: jane@corp.io\n  x: 1",
    "[jane@corp.at](mailto:jane@corp.at)",
    "# author: Jane <jane@corp.io>\nx = 1",
    "jane@studio.photography for portraits",
    "." * 99 + "jane@corp.com",
  ],
  "phone number": [
    "call (212) 555-0187",
    "call 212-555-0187.",
    "call 212.555.0187",
    "+44 20 7946 0958",
    "+1 917-555-6321",
    "0049 30 901820",
    "ring 07700 900123",
    "ring 020 7946 0958",
    "tel: 1-800-555-0199",
    "call me at 2125550187",
    "Call me on 9876543210 tonight",
    "my cell number is 2125550187",
    "phone: 0612345678",
    "06 12 34 56 78",
    "Mon numéro : 07 98 76 54 32.",
    "01.42.68.53.07",
    "+33 6 12 34 56 78",
    "0033 6 12 34 56 78",
    "+86 138 1234 5678",
    'phone = "212-555-0187"',
    "212 555 0187, 917 555 6321",
    "Jane Doe, 12 Main St\n02101\n+1 917 555 6321",
  ],
  "card number": [
    "card 4111 1111 1111 1111",
    "card 5500-0000-0000-0004",
    "4012888888881881",
    "card_number = 4111111111111111",
    "3782 822463 10005",
  ],
  "id number": [
    "SSN 078-05-1120",
    "IBAN GB82 WEST 1234 5698 7654 32",
    "DE89370400440532013000",
    "my passport number is X1234567",
    "Driver's license: D1234567",
    "driver license 545345",
    "my license is D1234567",
    "licence number 19991231",
  ],
  "user name": [
    "ask @jane_doe about it",
    "(@janedoe)",
    "by @janedoe.",
    "@janedoe",
    "@JaneDoe @bob_x so true",
    "RT @bob_x: hello",
    "cc @janedoe, @bob_jones",
    "- @jane_doe is the one",
    "follow @janedoe & @bobjones",
    '"@janedoe" is my handle',
    "Follow @john.smith on IG",
    "I think @john.smith is right",
    "@bob.jones99: see this",
    "ask @jane_doe about the Python decorator",
    "@bob_x can you review the Python class?",
    "I met @janedoe at a Ruby meetup",
    "@jane_doe says the macro is wrong",
    "[10:23] bob: hey @jane_doe, in Python use a list",
    "use the photo by @janedoe",
    "a library of decorators by @jane_doe",
  ],
  "page of a user": [
    "https://twitter.com/janedoe",
    "see github.com/janedoe",
    "my page is https://github.com/janedoe.",
    "https://gitlab.com/janedoe/",
    "https://m.facebook.com/jane.doe",
    "https://medium.com/@janedoe/some-post",
    "www.linkedin.com/in/jane-doe-123",
    "https://www.facebook.com/jane.doe.9",
    "reddit.com/u/janedoe",
    "http://example.org/~jane/index.html",
    "https://example.com/users/jane",
    "ftp://jane:secret@host/",
  ],
  "network address": ["from 52.14.88.201:8080", "IP: 81.2.69.142"],
}
HARMLESS = [
  "Add 2,000,000 and 400,000 to get 2,400,000.",
  "In 1914-1918, about 20 000 000 people",
  "2000000-400000=1600000",
  "Dates: 2020-01-31, 31.01.2020, 12/25/1937.",
  "Order 4111 1111 1111 1112 has no valid check digit",
  "1234567890123456 is a number",
  "0000 0000 0000 0000",
  "print(f'{x:.3f}') # 3.14159265358979",
  "Linux 2.6.8.1 and version 10.0.1",
  "127.0.0.1 and 192.168.0.1",
  "@property\ndef x(self): ...",
  "text\n@decorated\nclass X: ...",
  "@media screen { }",
  "it costs 5 @ 3 dollars",
  "https://www.vox.com/2020/3/18/21229268/story",
  "https://github.com/features",
  "https://en.wikipedia.org/wiki/User_interface",
  "the license plate, the passport office, 12 people",
  "GB82 WEST 1234 5698 7654 33 has a wrong check sum",
  "A ratio of 100:200:3000",
  "ISBN 978-3-16-148410-0",
  "phone 12345",
  "https://graph.facebook.com/v2.0/me",
  "https://docs.github.com/en",
  "user@example.com, you@example.org or me@box.local",
  "jane@sub.example.net, ann@foo.test, bob@foo.invalid, me@foo.example",
  "name@example.co.uk, alice@localhost.localdomain",
  "logo@2x.png and getty@tty1.service are files",
  "Convert 0010101011 to decimal.",
  "0010 1010 1011 0101 in binary",
  "Row 00123456789 done",
  "compute 234-567-8901",
  "What is 234-567-8901?",
  "234-567-8901 = -9234",
  "Order 2125550187 has shipped, part 234-567-8901 has not",
  "the sum of\n472547338\n+447911123456\n----",
  "the sum of 25662672 and 4111111111111111 + 1",
  "12 234 567 8901 55\n34 567 890 1234 56",
  "05 10 15 20 25",
  "hex dump 00 06 12 34 56 78 9a",
  "2010 2011 2012 2013",
  "// MIT License 2015-2020 Foo",
  "GPLv3 License 2007-2011",
  "License: 2015 - 2020",
  "License 20230101",
  "Social Security 1935-1965",
  "172.16.20.30 and 172.31.44.12",
  "224.0.0.251 and 239.255.255.250",
  "203.0.113.77, 100.64.10.12, 169.254.10.12, 255.255.255.0",
  "version 12.34.56.78",
  'Add "@type": "Person" and "@vocab": "x" to it.',
  "In Vue, @click is short for v-on:click.",
  "In Vue 3, @keyup.enter or @my_event fires.",
  "Use @moduledoc to document a module.",
  "You can use @my_macro for it.",
  "the @simd macro, the @inbounds and @views macros",
  "What does @foobar do in Julia?",
  "Elixir's @my_attribute",
  "Use @font-face in CSS.",
  "Balances are denoted by @my_balance.",
  "the result is:\n\n4212883012996",
  "The decorator @app.route maps addresses.",
  "In Ruby, @order.total is nil and @balance is not.",
  "The JSDoc tags @param and @typedef",
]
CODE = {
  "Ruby": "class A\n  def initialize(name)\n    @first = name\n  end\nend",
  "Ruby, after an empty line": "def a\n  x = 1\n\n  puts @first\nend",
  "Ruby getter": "  def first\n    @first\n  end",
  "Ruby counter": "  @counter += 1\n  @@instances << self",
  "Perl": "my @sorted = sort { $a <=> $b } @numbers;",
  "Perl loop": "foreach my $x (@numbers) {\n  print $x;\n}",
  "Perl string": 'push @queue, $job;\nprint "@queue\\n";',
  "npm": "npm install @angular/core @types/node",
  "TypeScript": "import { A } from '@angular/core';\n\n@Component({x: 1})",
  "LaTeX": "\\makeatletter\n\\@ifnextchar[{\\foo}{\\bar}",
  "T-SQL": "DECLARE @amount INT;\nSET @amount = 1;\nSELECT @amount;",
  "SQL": "select * from users where id = @customer",
  "first decorator": "@decorated_fn\ndef f(): pass",
  "indented decorators": "    @cached\n    @retry\n    def f(self): pass",
  "Java": "@RequestMapping public String home() { return x; }",
  "Java above": "@Nullable\npublic void run() {}",
  "Swift": "@IBOutlet weak var label: UILabel!",
  "Elixir": "defmodule A do\n  @timeout 5000\n  def x, do: @timeout\nend",
  "make": "all:\n\t@gcc -o x x.c",
  "Vue": '<button @click="go">x</button>',
  "Razor": "<p>@Model.Name</p>\n<p>@item</p>",
  "CSS": "@tailwind base;\n@apply px-2;",
  "clone": "git clone git@github.com:foo/bar.git",
  "matmul": "y = x@self.weight + b",
  "matmul of a method": "h = X@W.transpose(0, 1)",
  "matmul, transposed": "scores = q@k.mT",
  "matmul of an attribute": "h = x@self.Wq",
  "matmul, divided": "out = (q@k.mT / d).softmax(-1)@v.to(x.dtype)",
  "matmul with the name of a domain": "y = x@params.net + b",
  "matmul with the name of a country": "y = x@w.at[0].set(1)",
  "inline matmul": "The layer computes `y = x@params.net`.",
  "matmul in a sentence": "First, x@self.weight is computed.",
  "binary": "0010101010101010",
  "subtraction": "x = 234-567-8901\nprint(x)",
  "licence": "/* MIT License 2015-2020 */\nint x = 1;",
  "Elixir behaviour": "defmodule A do\n  @behaviour B\n\n  @my_attr\nend",
  "Julia": "@inbounds for i in 1:n\n  @foo x[i]\nend",
  "Ruby block": "@users.each do |user|\n  puts user\nend",
  "dotted decorator": "@pytest.mark.slow\ndef test_x(): pass",
  "JSON-LD": '{"@context": "https://schema.org", "@type": "Person"}',
  "repository": "see https://github.com/tensorflow/tensorflow for it",
  "file of a repository": "https://github.com/foo/bar/blob/main/x.py",
  "Go": 'import "github.com/gorilla/mux"',
  "request": "curl https://api.github.com/users/octocat",
  "local request": "fetch('http://localhost:3000/users/new')",
  "route": "GET https://example.org/users/{id}",
  "connection": "postgres://user:secret@db.internal:5432/x",
  "inline code": "In Ruby, `@first` is an instance variable.",
  "question": "What do @name and @@count mean in Ruby?",
  "fence": "Here:\n```\n@foo bar\n\n@baz\n```\nDone",
  "MATLAB": "f = @sin; arrayfun(@square, x)",
  "action": "uses: actions/checkout@v3\nimage: foo@sha256:abc",
}


@pytest.mark.parametrize(
  "kind, text", [(k, t) for k, actual in PERSONAL.items() for t in actual]
)
def test_personal_information(kind, text):
  assert personal_information(text) == kind
  if "\n" not in text:
    assert personal_information(f"Well,\n{text}\nand so on") == kind


@pytest.mark.parametrize("text", HARMLESS)
def test_no_personal_information(text):
  assert personal_information(text) == ""


@pytest.mark.parametrize("name", CODE)
def test_code_is_no_personal_information(name):
  assert personal_information(CODE[name]) == ""
  fenced = f"Here you are:\n\n```\n{CODE[name]}\n```\n\nIt works."
  assert personal_information(fenced) == ""


def test_text_beside_code_is_looked_at():
  code = CODE["Ruby"]
  assert personal_information(f"{code}\n\nThanks to @jane_doe.") == "user name"
  assert personal_information(f"Ask @jane_doe.\n\n{code}") == "user name"


CHARS = 300_000
LETTERS = string.ascii_letters + string.digits
# What is repeated, up to 300,000 characters.
REPEATED = {
  "letters": "a",
  "digits": "1",
  "number words": "1 ",
  "signs": "+1 ",
  "at signs": "a@",
  "handles": "@abc ",
  "handles in code": "@foo_bar x = 1;\n\n",
  "matmuls": "x@w.weight = 1\n\n",
  "calls": "a@b.cc(",
  "labels": "a.",
  "hyphens": "a-",
  "percent signs": "%",
  "underscores": "_",
  "slashes": "a/",
  "schemes": "http://",
  "passwords": "http://aaaa:bb",
  "connections": "://a:b@c.dd ",
  "pages": "github.com/a",
  "pages of pages": "github.com/a/",
  "inline code": "`@abc` ",
  "handles in prose": "the @abc_x macro ",
  "dotted handles": "@abc.defg.hij ",
  "letters and domains": "é@ü.de ",
  "French numbers": "06 12 ",
  "calls for a call": "call me at ",
  "passports": "passport ",
  "colons": "ssn:",
  "IBANs": "AB12",
  "spaces": " ",
  "lines": "a\n",
  "empty lines": "\n",
  "assignments": "a b c d ",
  "brackets": "f(",
  "decorators": "@aaaa\n",
  "fences": "```\n",
  "imports": "import a ",
}
STARTS = ("", "a@", "http://", "github.com/a/", "passport 1", "ssn ", "import ")
ENDS = ("", "\n@foo_x", "@a.bc", " me@x", "/users/x", "1")


# Blanks or handles ahead of each handle were scanned once for every handle.
@pytest.mark.parametrize("ahead", [" ", "\t", "@abc1 ", "github.com/a/"])
@pytest.mark.parametrize("part", ["@abc1 ", "@abc.def ", "a@b.cc ", "/a"])
def test_every_detector_is_linear_in_the_preceding_text(ahead, part):
  half = CHARS // 2
  text = ahead * (half // len(ahead)) + part * (half // len(part)) + "\nx = 1"
  _check_time(text)


@pytest.mark.parametrize("name", [*REPEATED, "random", "random digits"])
def test_every_detector_is_linear(name):
  rng = random.Random(name)
  if name in REPEATED:
    part = REPEATED[name]
    body = part * (CHARS // len(part))
  else:
    body = "".join(
      rng.choices(LETTERS if name == "random" else "01 -", k=CHARS)
    )
  text = rng.choice(STARTS) + body + rng.choice(ENDS)
  _check_time(text)


def _check_time(text):
  for _, _, detect in personal.DETECTORS:
    began = time.process_time()
    detect(text)
    # Quadratic patterns take minutes; linear ones less than half a second.
    assert time.process_time() - began < 5
