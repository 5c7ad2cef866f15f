"""What the supervisor knows of guests: processes, mounts, open file descriptions."""
