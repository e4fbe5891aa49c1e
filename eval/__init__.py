"""Measuring: metrics, classical codecs, sweeps, reports, benchmarks."""
