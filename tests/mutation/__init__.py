"""Whether the tests of billing would notice if its arithmetic or its SQL were wrong."""
