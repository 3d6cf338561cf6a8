"""A backend with a virtual clock, and what it simulates. No torch."""
