"""A Debian guest in QEMU, without KVM: `image` builds what it boots from, `machine` starts it and talks to it.

What runs in the guest is in `inside`: it comes with the initramfs, so an edit rebuilds nothing else.
"""
