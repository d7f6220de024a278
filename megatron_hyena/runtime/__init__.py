"""This process on this machine: rank, device, threads, allocator, console."""
