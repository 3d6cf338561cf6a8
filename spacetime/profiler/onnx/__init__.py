"""ONNX files as torch modules, without torchvision. The profiler and its commands stand on `load_onnx`.

file.py reads and checks, fold.py evaluates what is constant, rewrite.py restores what PyTorch does in one call,
module.py runs the rest; operators/ has a function for every operation. The onnx package is an extra.
"""

from spacetime.profiler.onnx.load import OnnxModel, load_onnx

__all__ = ["OnnxModel", "load_onnx"]
