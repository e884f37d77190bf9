"""C compiled when it is first needed, and the private folder it is kept in."""
