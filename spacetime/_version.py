"""The version, written once: the package, the wheel and the command line read it here. Bottom layer."""

__version__ = "0.1.0"
