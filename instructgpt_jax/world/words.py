"""The closed vocabulary of the synthetic world, sorted into classes.

Every text of the world is a sequence of these words with single spaces between
them; punctuation marks are words of their own.
"""

from __future__ import annotations

PEOPLE = tuple("ann bob cara dan eva finn gus hana ivo jan".split())
STRANGERS = tuple("kim leo mia".split())  # nothing is ever stated about them
EVERYONE = PEOPLE + STRANGERS
CITIES = tuple("boral corin delby fenwick garo lumen pell torva".split())
ANIMALS = tuple("bear cat crow dog duck fox frog goat hen wolf".split())
THINGS = tuple("bell boat chair clock drum glove kite lamp rope vase".split())

JOBS = tuple(
  "baker cook doctor farmer guard judge painter sailor singer teacher".split()
)
RIVERS = tuple("dovo kell mira naro sunn".split())
FOODS = tuple("beans bread cheese corn fish grass honey rice soup".split())
PLACES = tuple("barn cave field forest hill lake market tower".split())
COLOURS = tuple("black blue brown green grey red white yellow".split())
MATERIALS = tuple("clay glass gold iron paper stone wood wool".split())
NUMBERS = tuple("one two three four five six seven eight nine".split())

CATEGORIES = {
  "people": PEOPLE,
  "cities": CITIES,
  "animals": ANIMALS,
  "things": THINGS,
  "jobs": JOBS,
  "foods": FOODS,
  "places": PLACES,
  "colours": COLOURS,
}

# What can be written in capital letters; the only upper-case words besides
# the two tags of a dialogue.
WRITABLE = COLOURS + ANIMALS
CAPITALS = tuple(word.upper() for word in WRITABLE)

USER, ASSISTANT = "U:", "A:"
TAGS = (USER, ASSISTANT)

# The second language: one word for each of ours; `documents` has its grammar.
LEXICON = dict(
  zip(
    ("the", "in") + ANIMALS + COLOURS + PLACES,
    (
      "la en "
      "urso kato korvo hundo anaso vulpo rano kapro koko lupo "
      "nigra blua bruna verda griza ruga blanka flava "
      "garbo groto kampo arbaro monto lago vendejo turo"
    ).split(),
    strict=True,
  )
)
VERBS = ("sees", "likes", "follows", "finds", "hears", "helps")
_FOREIGN_VERBS = "vidas amas sekvas trovas audas helpas".split()
LEXICON |= dict(zip(VERBS, _FOREIGN_VERBS, strict=True))

PRAISE = ("lovely", "great", "nice", "fine")
BLAME = ("awful", "poor", "dull", "ugly")

# A verb's tool. The first three do harm to people and animals and none to
# things; the next three always do harm; the others never do.
TOOLS = {
  "hit": "stick",
  "burn": "fire",
  "cut": "knife",
  "poison": "potion",
  "trick": "lie",
  "rob": "mask",
  "feed": "bowl",
  "wash": "water",
  "paint": "brush",
  "find": "map",
}

UNKNOWN = "i do not know ."
UNSTATED = "the text does not say ."
REFUSAL = "i can not help with that ."
MORAL = "that is wrong ."
OPENING_FILLERS = (
  "well ,",
  "you know ,",
  "to be fair ,",
  "let me think .",
  "in my opinion ,",
  "that is a good question .",
  "as we all know ,",
)
CLOSING_FILLERS = (
  "i hope this helps .",
  "there is more to say .",
  "ask me again any time .",
  "and so on and so on .",
)
FILLERS = OPENING_FILLERS + CLOSING_FILLERS
OPINIONS = ("in my opinion ,",)
INSULTS = ("you fool .", "what a stupid question .", "go away .")

CONTENT = (
  PEOPLE
  + CITIES
  + ANIMALS
  + THINGS
  + JOBS
  + FOODS
  + PLACES
  + COLOURS
  + MATERIALS
  + NUMBERS
)

PREFIX = "the assistant is helpful , honest and polite ."
# Four candidate prefixes. As in the paper, a reward model picks one of them.
PREFIXES = (
  PREFIX,
  "the assistant is helpful .",
  "the assistant is honest and polite .",
  "that is a good question .",
)
