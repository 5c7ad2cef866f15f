"""The modules that come with umvm; each can be loaded and unloaded while guests run."""
