"""Coding tools an encoder may use. None is needed to decode but the filter."""
