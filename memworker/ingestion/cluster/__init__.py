"""A job on the nodes of a Ray cluster: read and embedded there, committed by the driver."""
