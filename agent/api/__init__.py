"""What may be asked and told, as pure data: it imports nothing of ours."""
