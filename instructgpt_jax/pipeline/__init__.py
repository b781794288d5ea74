"""All stages in order, skipping what is complete, and a report at the end."""
