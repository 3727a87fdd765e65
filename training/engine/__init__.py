"""DeepSpeed, launching, checkpoints and memory."""
