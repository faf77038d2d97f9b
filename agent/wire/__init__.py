"""Bytes to messages and back, for both sides. No I/O: whoever has the connection reads and writes."""
