"""Decisions: handle(event, now) -> effects. No I/O, no clock."""
