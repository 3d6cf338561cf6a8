"""NVIDIA GPUs: partitions by green contexts, through the driver API. Importing it imports no CUDA."""
