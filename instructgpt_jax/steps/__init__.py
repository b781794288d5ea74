"""Pure train steps: (state, batch) → (state, metrics). Jitted in `loops`."""
