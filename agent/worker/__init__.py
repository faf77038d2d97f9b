"""What a forked child does: run one RPC, report over its pipe, and end."""
