"""The training step: batches, bank, losses, optimiser, checkpoints."""
