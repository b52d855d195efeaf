"""The evidence log p(X | K, prior): Chib, annealing, and exact sums for tiny tables."""
