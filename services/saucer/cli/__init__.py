"""The `saucer` command line: every verb of the product, with progress bars, tables, pictures and `--json`."""
