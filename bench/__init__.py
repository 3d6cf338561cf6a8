"""Measurements: ratios within one run, recorded with provenance. `python -m bench`; tests share the generators."""
