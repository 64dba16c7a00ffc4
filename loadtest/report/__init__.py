"""Report of a sweep: accuracy against cost and latency, as a page, pictures and CSV."""
