"""What hosts may ask and what they are answered, as pure data. Imports nothing else of this project."""
