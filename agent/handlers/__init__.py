"""The RPCs, one file a family. Inline handlers act on the `Agent` they are given; worker handlers run in a fork."""
