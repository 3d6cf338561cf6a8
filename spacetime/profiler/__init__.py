"""The profiler: measures kernels, finds knees, keeps profiles. The CLI and the public `profile` stand on it."""
