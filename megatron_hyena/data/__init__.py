"""Genomes on disk, and the stream of windows that training reads from them."""
