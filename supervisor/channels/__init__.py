"""How hosts come: listeners, character devices, and the connections on them."""
