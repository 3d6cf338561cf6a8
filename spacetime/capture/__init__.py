"""From an unmodified module to a program whose rows may belong to different models."""
