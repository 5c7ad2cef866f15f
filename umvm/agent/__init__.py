"""The in-guest agent: what it is told, the loader that brings it, and the cache of patched programs."""
