"""What search, study and ablation stand on: trials, who takes them, what they are compared by."""
