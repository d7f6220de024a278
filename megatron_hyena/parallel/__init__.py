"""How one model becomes many: the only room that imports Megatron-core."""
