"""What a module's objects implement: file systems, identity, network stacks."""
