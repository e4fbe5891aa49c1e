"""Benchmarks: programs, never timed tests."""
