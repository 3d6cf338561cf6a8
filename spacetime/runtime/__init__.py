"""The runtime: tenants in, results out. Puts capture, scheduler and backend together."""
