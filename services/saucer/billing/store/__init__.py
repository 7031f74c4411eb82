"""The SQL of billing, by what it is about. Money moves in one statement each: holds, and everything else."""
