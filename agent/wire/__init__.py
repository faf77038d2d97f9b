"""Channel bytes to requests and replies to channel bytes. No I/O: the channel reads and writes."""
