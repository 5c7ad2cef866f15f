"""The rules of the VFS, apart from how calls carry their arguments: who may do what, and how."""
