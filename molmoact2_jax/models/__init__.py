"""The networks, as functions of parameters and arrays."""
