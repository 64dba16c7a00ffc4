"""Ways to ask one server for the same classes: /classify, the Open Inference Protocol, gRPC, many images at once."""
