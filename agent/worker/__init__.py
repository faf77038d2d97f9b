"""What a forked child does: it runs one RPC, reports over its pipe and ends."""
