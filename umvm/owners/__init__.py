"""Who owns the host's files as guests see them: in memory, in databases, in fakeroot's files."""
