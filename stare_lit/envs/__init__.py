"""The simulator as TorchRL environments, and what is measured on it; no models, no Lightning."""
