"""The trade-off report: what each model buys, as a page, pictures and CSV."""
