"""A server of one model with the HTTP interface of OpenAI.

`command.py` is the command line and `app.py` the HTTP application.
`protocol.py` reads requests, and `responses.py` writes their answers.
`batcher.py` decodes waiting requests together, and `answer.py` turns tokens
into text.
"""
