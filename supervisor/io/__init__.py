"""The loop that waits, and what applies the effects: forks, journal, log, title."""
