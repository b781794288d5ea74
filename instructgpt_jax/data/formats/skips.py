"""Reasons for which a record is skipped and counted."""


class Skip(Exception):
  """A record that is skipped and counted; its text is the reason."""


TIES = "rankings with only ties"
EMPTY = "empty completions"
UNRANKED = "replies without a preference"
IDENTICAL = "pairs of identical replies"
PROMPTS_DIFFER = "pairs whose prompts differ"
CONTRADICTION = "records whose fields contradict each other"
EMPTY_TURNS = "conversations with an empty turn"
NO_USER = "conversations without a user's turn"
NO_TURNS = "conversations without turns"
ENDS_WITH_REPLY = "prompts that end with a reply"
NOT_ANSWERING = "replies that do not follow a user's turn"
TOOLS = "conversations with tools or tool calls"
NOT_TEXT = "records with images or other parts that are not text"
BAD = "completions labelled bad"
UNKNOWN_LABEL = "completions with an unknown label"
LATER_CONTEXT = "replies to a question before that of the context"
NO_REPLIES = "prompts without replies"
UNREADABLE = "replies whose score is no number"
WEIGHT_0 = "replies of weight 0"
NOT_FINITE = "records with a number that is not finite"
