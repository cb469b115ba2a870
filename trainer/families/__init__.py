"""Base models by family, one file for each; `registry.load` finds out which one a model is of."""
