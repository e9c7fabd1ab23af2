"""Parts of the trainer: processes, batches, labels, loss, optimizers, epochs and memory."""
