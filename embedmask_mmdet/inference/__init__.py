"""Detect in images and videos and draw the results."""

from embedmask_mmdet.inference.inferencer import EmbedMaskInferencer
from embedmask_mmdet.inference.speed import speed_up

__all__ = ['EmbedMaskInferencer', 'speed_up']
