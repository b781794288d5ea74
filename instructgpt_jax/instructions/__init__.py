"""Instructions in English whose fulfilment a program checks.

`kinds` holds the kinds of instructions, their texts and their checks. `items`
makes sets of them, and reads and writes files. `__main__` is the command.
"""
