"""What is true whatever happens: plans, states, errors and arithmetic. Pure: no I/O, no clock, no chance, no Ray."""
