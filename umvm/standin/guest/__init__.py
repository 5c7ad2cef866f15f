"""This directory is put in guests' PYTHONPATH; nothing is imported through this package."""
