"""Other libraries' checkpoints: the one part of `models` that touches files.

`families` says how a family's configuration and tensors are called, `mapping`
which part of which of our arrays each tensor is, `tensors` reads and writes
safetensors files, `folder` a whole directory.
"""
