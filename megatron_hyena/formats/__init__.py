"""Files of the field, parsed: sequences, annotation, numbers per base."""
