"""Between the rows of a user and the points of a model: what all kinds of data have in common."""
