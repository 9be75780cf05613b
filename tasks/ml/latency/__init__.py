"""What a shape would take on this machine, and the shape that fits a time."""
