"""One ONNX file from image to masks: the parts of a trained detector as a graph of standard operators."""
