"""Precision, ZeRO, optimizer, steps: the only room that imports DeepSpeed."""
