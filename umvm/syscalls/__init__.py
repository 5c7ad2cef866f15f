"""System calls: the table of all calls, the filter made from it, and one module per family."""
