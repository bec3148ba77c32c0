"""Pure torch: log-probs, advantages, losses, micro-batches, the learner step and supervised fine-tuning."""
