"""Run the ONNX file of a detector without PyTorch and MMDetection: numpy, OpenCV and onnxruntime are enough."""

from embedmask_mmdet.runtime.detections import Detections
from embedmask_mmdet.runtime.segmenter import Segmenter

__all__ = ['Detections', 'Segmenter']
