"""Whole programs in one native call: where products and pointwise operations are all there is, a lane is one launch.

A small model is a handful of operations, each of which costs more to call than to compute. `reader.py` turns a fused
program into a `Script` (script.py), `grouping.py` makes few stages of it, `compiled.py` a function, and `program.py`
calls that for the requests of a lane. See docs/decisions/010. Used by backends/.
"""

from __future__ import annotations
