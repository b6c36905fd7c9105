"""Programs that show butterjax at work."""
