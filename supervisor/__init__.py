"""The one long-lived process: it decides, forks, kills and answers, and never blocks."""
