"""Pictures: plain data, and what evaluation answers, to PNG and SVG. Used by the command line and by evaluation."""
