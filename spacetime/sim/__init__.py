"""A backend with a virtual clock, and what it simulates. No torch.

`simulate` plays a workload, `devices` and `architectures` are what there is to simulate. backend -> work -> engine ->
fluid is the way of a lane to the compiled loop; those modules load numba, and this one does not.
"""
