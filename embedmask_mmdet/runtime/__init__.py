"""Run the ONNX file of a detector without PyTorch and MMDetection."""
