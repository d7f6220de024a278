"""Files of the field, parsed: sequences, annotation, alignments, numbers per base, sheets."""
