"""TensorRT and CUDA: bindings, engine building, and checks of what layers compute in."""
