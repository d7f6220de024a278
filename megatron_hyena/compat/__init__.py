"""The model family under the names of the documents it comes from: thin, torch alone.

Batch first, [B, L, d] -> [B, L, d], over the layers of `megatron_hyena.layers`; no arithmetic of
their own. All are exported from `megatron_hyena`; `docs/seeds.md` has the table of names.
"""
