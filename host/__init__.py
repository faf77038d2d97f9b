"""The client side. Imports only agent.wire and agent.errors."""
