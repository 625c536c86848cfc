"""The paper's Tables 2 to 6 on any data: the grid of runs, each run, its results, the report."""
