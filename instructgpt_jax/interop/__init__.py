"""Reads and writes checkpoints of Hugging Face transformers and PEFT.

`families` describes each architecture's configuration and tensor names,
`mapping` relates each Hugging Face tensor to a native array, `tensors` reads
and writes safetensors files, and `directory` handles a model directory.
"""
