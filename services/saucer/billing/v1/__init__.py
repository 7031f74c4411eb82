"""Generated from the protos; `make protos` writes it anew."""
