"""What every ONNX operation does, by family; the modules fill the table of registry.py. Used by profiler/onnx/ only."""
