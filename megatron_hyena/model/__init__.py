"""The assembled model and what it costs."""
