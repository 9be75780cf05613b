"""Sessions of onnxruntime: their answers, their parity with the module, their time."""
