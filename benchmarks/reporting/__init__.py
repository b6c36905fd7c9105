"""What `benchmarks.report` is made of: statistics, figures and the page."""
