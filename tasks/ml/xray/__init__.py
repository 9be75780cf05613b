"""What a model would cost, before it is trained: parameters, operations, memory, the limits of this machine."""
