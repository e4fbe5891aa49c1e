"""Classifiers, which read latents or images."""
