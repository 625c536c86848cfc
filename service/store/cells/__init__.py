"""A store of several cells: the stores of one cell, by the ids of notes or all together."""
