"""Entry points of training and evaluation."""
