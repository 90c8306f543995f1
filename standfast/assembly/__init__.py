"""Puts a node's parts together: the one place that knows which of them are real."""
