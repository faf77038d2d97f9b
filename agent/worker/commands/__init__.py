"""The guest-* commands that run in a worker, one file a family."""
