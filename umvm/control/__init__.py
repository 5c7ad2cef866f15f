"""The control socket: how `umvm mount`, `insmod`, `ps`… reach a running supervisor."""
