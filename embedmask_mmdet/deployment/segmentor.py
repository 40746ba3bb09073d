"""A detector from image to masks, with nothing but tensors in between, so that it can be exported."""

from __future__ import annotations

from torch import Tensor, nn

from embedmask_mmdet.deployment.candidates import Candidates
from embedmask_mmdet.deployment.grid import MakeGrid
from embedmask_mmdet.deployment.masks import MaskStage
from embedmask_mmdet.deployment.outputs import GridMasks, ImageMasks
from embedmask_mmdet.deployment.refinements import make_refinement
from embedmask_mmdet.deployment.suppression import sort_by_score
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.models import EmbedMask, EmbedMaskBoxFrame, EmbedMaskLocationFrame, EmbedMaskScaledBoxFrame

FRAMES = (EmbedMaskBoxFrame, EmbedMaskLocationFrame, EmbedMaskScaledBoxFrame)


class ExportableSegmentor(nn.Module):
    """Compute what the test pipeline and ``EmbedMask.predict`` compute, for one image.

    Args:
        model: With trained weights, on the CPU, in evaluation mode.
        preparation: Gives the network its input and the sizes of the image, see ``inputs.py``.
        make_masks: Class of what the file gives for masks, see ``outputs.py``.

    Attributes:
        axes: The axes of any size of each output, by its name.
        metadata: What the file says about its outputs.

    Raises:
        InputError: If a part of the model cannot be exported.
    """

    def __init__(
        self, model: EmbedMask, preparation: nn.Module, make_masks: type[ImageMasks] | type[GridMasks] = ImageMasks
    ) -> None:
        super().__init__()
        if type(model) is not EmbedMask:
            raise InputError(f'{type(model).__name__} cannot be exported. Use a config whose model is EmbedMask.')
        if type(model.frame) not in FRAMES:
            names = ', '.join(frame.__name__ for frame in FRAMES)
            raise InputError(f'the frame {type(model.frame).__name__} cannot be exported. These can: {names}.')
        self.model = model
        self.preparation = preparation
        self.candidates = Candidates(model.bbox_head)
        self.make_grid = MakeGrid(model.mask_head)
        stage = MaskStage(model.mask_head)
        self.refinements = [make_refinement(refinement, stage) for refinement in model.mask_head.refinements]
        self.masks = make_masks(stage)
        self.axes = {**{name: {0: 'detections'} for name in ('bboxes', 'scores', 'labels')}, **self.masks.axes}
        self.metadata = self.masks.metadata

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect and segment.

        Args:
            image: As `preparation` takes it.

        Returns:
            Best first: boxes ``(N, 4)`` in pixels of the image, scores ``(N,)``, labels int64 ``(N,)``, and what
            ``make_masks`` gives.
        """
        inputs, sizes = self.preparation(image)
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
