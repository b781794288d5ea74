"""How fast the steps are, beside peers and beside this machine's limits."""
