"""Many runs as one: grids, searches, and the jobs that they are made of."""
