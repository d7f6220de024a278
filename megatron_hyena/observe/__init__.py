"""What a run tells about itself: metrics, TensorBoard, progress bars, plots, memory and speed."""
