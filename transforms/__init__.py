"""Keras layers with no opinion about any model."""
