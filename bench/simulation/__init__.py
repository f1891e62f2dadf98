"""A discrete-event simulator with virtual time around the real kernels of the queue."""
