"""Personal information is found, code is not, and every pattern is linear."""

import random
import string
import time

import pytest

from instructgpt_jax.data import personal
from instructgpt_jax.data.personal import personal_information

PERSONAL = {
  "e-mail address": [
    "write to jane.doe+x@mail.example.co.uk now",
    "JANE@EXAMPLE.COM",
    "<jane@example.com>",
    "_jane@example.com_",
    "# author: Jane <jane@corp.io>\nx = 1",
    "jane@studio.photography for portraits",
    "." * 99 + "jane@example.com",
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
  ],
  "card number": [
    "card 4111 1111 1111 1111",
    "card 5500-0000-0000-0004",
    "4012888888881881",
    "3782 822463 10005",
  ],
  "id number": [
    "SSN 078-05-1120",
    "IBAN GB82 WEST 1234 5698 7654 32",
    "DE89370400440532013000",
    "my passport number is X1234567",
    "Driver's license: D1234567",
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
  "network address": ["from 203.0.113.77:8080", "IP: 81.2.69.142"],
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
  "kind, text", [(k, t) for k, found in PERSONAL.items() for t in found]
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
  for _, _, detect in personal.DETECTORS:
    began = time.process_time()
    detect(text)
    # Quadratic patterns take minutes; linear ones less than half a second.
    assert time.process_time() - began < 5
