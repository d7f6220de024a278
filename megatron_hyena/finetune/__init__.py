"""Fine-tuning: labelled sequences and their splits, metrics, additions of low rank, files."""
