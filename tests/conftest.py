"""Settings of the whole suite."""

from hypothesis import settings

# A deadline would turn a slow machine into a failing test; tests never time. The same examples for everyone, so
# that a failure belongs to the change; `--hypothesis-profile=explore` draws new ones.
settings.register_profile("spacetime", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("spacetime")
