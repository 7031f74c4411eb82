"""The whole stack on one machine, and the demonstration with its synthetic cup-and-plate images."""
