"""Device code in Triton: one file per kernel, same stem as its wrapper one folder up. Needs triton; launch.py loads it.

Names follow the tensors: x[rows, M, K], w[slots, N, K], y and res[rows, M, N]; `<name>_row` is the stride between rows,
`<name>_slot` the stride between slots, `<name>_entry` the table that tells which slot a row uses.
"""
