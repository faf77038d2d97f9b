"""Figures of a tree, counted in the same way whatever its layout is."""
