"""Tokenizers of all kinds; other parts import `instructgpt_jax.data.tokenizer`.

`base` is the interface, `hugging_face`, `sentencepiece_model` and `gpt2` the
kinds, `settings` and `special_tokens` what the files of a directory say about
special tokens, `loading` finds the files, `training` makes a new tokenizer.
"""
