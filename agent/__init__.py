"""What is said between host and guest, and what a forked child does. Imports neither supervisor nor host."""

__version__ = "0.1.0"
