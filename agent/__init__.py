"""What host and guest say to each other, and what a forked child does. Imports neither supervisor nor host."""

__version__ = "0.1.0"
