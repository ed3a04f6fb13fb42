"""What the traced computation says without any arithmetic: dependences, selections, maps, what never meets."""
