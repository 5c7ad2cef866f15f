"""The in-guest agent: what it is told, its loader, and the cache of patched programs."""
