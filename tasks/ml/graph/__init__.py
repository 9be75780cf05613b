"""From a module to an ONNX graph of the operators that it is meant to have."""
