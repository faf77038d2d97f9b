"""Consistent snapshots of KubeVirt's guests: all frozen, one group snapshot taken, its cut proved to lie in the window.

It speaks to the Kubernetes API alone, over HTTP, and asks KubeVirt to freeze; it needs nothing besides Python. As a
program: `python3 -m virtagent.kube snapshot|freeze|thaw` (main.py). No cluster has run it: docs/kube.md.
"""
