"""What each phase minimises (pure torch): a loss is a sum with its weight, so that micro-batches and ranks add up exactly."""
