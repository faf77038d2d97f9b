"""What the worker of a writer does: it talks with one application, and lets it go whatever dies."""
