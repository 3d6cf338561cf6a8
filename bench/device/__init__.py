"""`make device`: everything that only a GPU can tell, in one command. Nothing in the package imports it.

Each stage runs in a process of its own with a time-out, so that one that hangs or kills its context costs only
itself. The stages come in order of value; what one of them finds is on disk before the next one starts.
"""
