"""Programs that run in a peer's environment; they import nothing of this project but `lines`."""
