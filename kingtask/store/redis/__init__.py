"""The connection to Redis: address, protocol, supervision, discovery of the primary, first checks."""
