"""Detect in images and videos and draw the results."""

from embedmask_mmdet.inference.inferencer import EmbedMaskInferencer

__all__ = ['EmbedMaskInferencer']
