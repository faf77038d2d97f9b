"""How hosts reach the supervisor: listeners, character devices, and the connections on them."""
