"""Command lines: flags from configs, start-up of programs, error output."""
