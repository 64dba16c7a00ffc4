"""TensorRT and TensorRT for RTX: plans, and the engine that runs them."""
