"""Algorithms of optimal transport between finite sets of points."""
