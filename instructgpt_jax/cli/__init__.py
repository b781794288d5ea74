"""Command lines: flags from configs, start of a program, errors as text."""
