"""Conversations with a trained model: in the terminal, or over a file.

`command.py` is the command line, `terminal.py` the conversation, `batch.py`
answers a file, and `engine.py` turns prompts into tokens.
"""
