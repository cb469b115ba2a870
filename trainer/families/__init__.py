"""Base models by family: what the core needs of a diffusion pipeline, one file for each family."""
