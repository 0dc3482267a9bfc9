"""Seeded worlds: the product's own brokers, workers and clients, on a clock that jumps, over a plain model."""
