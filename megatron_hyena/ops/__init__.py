"""Functions on tensors: convolutions, attention, layout-changing products. No parameters."""
