"""The whole method on a pretrained language model: its steps and results."""
