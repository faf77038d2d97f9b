"""The guest-* commands that run in a worker, one module for each family."""
