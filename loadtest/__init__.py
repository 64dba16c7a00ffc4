"""Load tests over HTTP: latency, throughput and cost of each model."""
