"""Two factors in one launch, their weights in registers."""
