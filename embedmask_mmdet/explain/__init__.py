"""Pictures of what a model computes for an image: embeddings, margins, probabilities and masks.

``values`` computes, ``panels`` draws one diagram, ``pictures`` arranges diagrams, ``page`` makes an HTML page, and
``explanation`` puts them together.
"""

from embedmask_mmdet.explain.explanation import Explanation, explain_image, explain_sample, keep_embeddings

__all__ = ['Explanation', 'explain_image', 'explain_sample', 'keep_embeddings']
