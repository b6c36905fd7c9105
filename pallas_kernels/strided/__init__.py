"""One factor with d > 1, features last: weights stay in registers."""
