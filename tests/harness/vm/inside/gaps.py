"""Runs in the guest, from RAM: appends to a file every few ms, notes the longest time between two lines: FILE NOTE."""

from __future__ import annotations

import os
import select
import sys
import time

fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
note = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
last, longest = time.monotonic(), 0.0
while True:
    os.write(fd, b"line\n")
    now = time.monotonic()
    if now - last > longest:
        longest = now - last
        os.pwrite(note, b"%.6f\n" % longest, 0)
    last = now
    select.select([], [], [], 0.005)
