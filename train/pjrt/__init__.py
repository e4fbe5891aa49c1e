"""Training outside TensorFlow: a compiled step, run by JAX/PJRT."""
