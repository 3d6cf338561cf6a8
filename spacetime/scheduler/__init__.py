"""The scheduler: queues, policies, the loop. Imports no torch; the runtime and the simulator drive it.

Importing the package registers the policies that ship with it.
"""

from spacetime.scheduler import gslice, krisp, space_time, static, streams, time_slice

__all__ = ["gslice", "krisp", "space_time", "static", "streams", "time_slice"]
