"""Plumbing that every service stands on. Knows no service, and of their business only what all must compute alike."""
