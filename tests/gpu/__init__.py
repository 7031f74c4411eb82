"""What can only be shown on a machine with a GPU."""
