"""ONNX graphs: opening, transforming and measuring them."""
