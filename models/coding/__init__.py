"""Symbols to bytes and back: CDF bank, rANS coder, container."""
