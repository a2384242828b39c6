"""State, step, optimizer, EMA and the loop."""
