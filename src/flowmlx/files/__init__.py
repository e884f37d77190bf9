"""Files written whole, read with suspicion, and held by one process."""
