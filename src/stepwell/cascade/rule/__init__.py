"""When to stop: optimal stopping on recorded paths, its price, and certificates. Pure arrays."""
