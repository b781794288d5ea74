"""Recipes: the settings of a run that starts from a pretrained model.

`sizes` has the table by size, `limits` the arithmetic of token limits, `recipe`
the pure choice. `resolution` gathers what it depends on: the model, the device
and the run's own data.
"""

from instructgpt_jax.recipes.resolution import resolve

__all__ = ["resolve"]
