"""TensorRT and TensorRT-RTX: building, checking and running engines."""
