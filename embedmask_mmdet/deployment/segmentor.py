"""A detector from image to masks, with nothing but tensors in between, so that it can be exported."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from embedmask_mmdet.deployment.candidates import Candidates
from embedmask_mmdet.deployment.grid import MakeGrid
from embedmask_mmdet.deployment.masks import MaskStage
from embedmask_mmdet.deployment.outputs import MASK_OUTPUTS
from embedmask_mmdet.deployment.preprocessing import Preprocessing
from embedmask_mmdet.deployment.refinements import make_refinement
from embedmask_mmdet.deployment.suppression import sort_by_score
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.models import EmbedMask, EmbedMaskBoxFrame, EmbedMaskLocationFrame

FRAMES = (EmbedMaskBoxFrame, EmbedMaskLocationFrame)


class ExportableSegmentor(nn.Module):
    """Compute what the test pipeline and ``EmbedMask.predict`` compute, for one image.

    Args:
        model: With trained weights, on the CPU, in evaluation mode.
        pipeline: Configs of the steps of the test pipeline.
        masks: What to give for masks, a name of ``MASK_OUTPUTS``.

    Raises:
        InputError: If a part of the model or of the pipeline cannot be exported.
    """

    def __init__(self, model: EmbedMask, pipeline: Sequence[dict], masks: str = 'image') -> None:
        super().__init__()
        if type(model) is not EmbedMask:
            raise InputError(f'{type(model).__name__} cannot be exported. Use a config whose model is EmbedMask.')
        if type(model.frame) not in FRAMES:
            names = ', '.join(frame.__name__ for frame in FRAMES)
            raise InputError(f'the frame {type(model.frame).__name__} cannot be exported. These can: {names}.')
        self.model = model
        self.preprocessing = Preprocessing(model.data_preprocessor, pipeline)
        self.candidates = Candidates(model.bbox_head)
        self.make_grid = MakeGrid(model.mask_head)
        stage = MaskStage(model.mask_head)
        self.refinements = [make_refinement(refinement, stage) for refinement in model.mask_head.refinements]
        self.masks = MASK_OUTPUTS[masks](stage)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect and segment.

        Args:
            image: uint8 ``(H, W, 3)``, BGR.

        Returns:
            Best first: boxes ``(N, 4)`` in pixels of the image, scores ``(N,)``, labels int64 ``(N,)``, and what
            ``masks`` gives.
        """
        inputs, sizes = self.preprocessing(image)
        proposals, pixel_embeds = self.model._embed(inputs)
        results = self.candidates(proposals, sizes.img_shape)
        results = self.model.frame.place(results, self.model.bbox_head.strides[0])
        results.crop_bboxes = results.bboxes
        grid = self.make_grid(pixel_embeds[0], sizes)
        scale_factor = sizes.img_shape.double() / sizes.ori_shape.double()
        results.bboxes = results.bboxes * (1 / scale_factor).flip(0).repeat(2).to(results.bboxes)
        for refine in self.refinements:
            results = refine(results, grid)
        results = sort_by_score(results)
        return results.bboxes, results.scores, results.labels, *self.masks(results, grid)
