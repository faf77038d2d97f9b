"""What can be said and done: pure code, or code that runs in a worker. Imports neither supervisor nor host."""

__version__ = "0.1.0"
