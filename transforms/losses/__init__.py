"""Losses that look at images through a network."""
