"""What lies on disk, and how it is re-cut and translated."""
