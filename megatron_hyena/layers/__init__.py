"""Modules with parameters. They know shapes, not ranks: the layout is behind `Provider`."""
