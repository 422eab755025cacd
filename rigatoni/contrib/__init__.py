"""Bridges to other programs; each imports its own dependency and, of this package, only what `rigatoni` exports."""
