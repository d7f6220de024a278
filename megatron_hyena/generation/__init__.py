"""Writing sequences: one base at a time, from carried state, under constraints."""
