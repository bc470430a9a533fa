"""Training in less memory: losses, steps, adapters and optimizer states."""
