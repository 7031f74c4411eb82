"""Plumbing that every service stands on. Knows no service and no business word."""
