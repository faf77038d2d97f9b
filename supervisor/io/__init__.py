"""The loop that waits, and the appliers of effects: forks, journal, log, title."""
