"""A model as a Hugging Face folder that needs `transformers` and torch, but not this package."""
