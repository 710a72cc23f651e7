"""TensorRT and CUDA: bindings, engine building, precision and compatibility checks."""
